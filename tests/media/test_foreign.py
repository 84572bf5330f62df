"""Files in a folder of images that are none: skipped, counted by kind, and refused where strict."""

import calls
import pytest
import tiny

from ccnet_cli import cli
from ccnet_cli.errors import InputError
from ccnet_cli.media import sources

# kind -> names that are skipped; those that end in / are folders with an image inside
SKIPPED = {
    "hidden file": ["._a.png", ".DS_Store", ".a.jpg", "town/._c.png", ".nomedia"],
    "hidden folder": [".thumbnails/", ".git/", "town/.cache/"],
    "system file": ["Thumbs.db", "desktop.ini", "town/thumbs.DB"],
    "system folder": ["__MACOSX/", "@eaDir/"],
    "empty file": ["empty.png", "town/EMPTY.JPG", "empty.mp4"],
}
OTHERS = ["notes.txt", "archive.zip", "no_suffix", "town/b.xml", "empty.txt"]


def make(folder, names):
    tiny.write(folder / "a.png", tiny.picture(16, 16, 1))
    tiny.write(folder / "town" / "c.png", tiny.picture(16, 16, 2))
    for name in names:
        if name.endswith("/"):
            tiny.write(folder / name / "inside.png", tiny.picture(16, 16, 3))
        else:
            (folder / name).write_bytes(b"" if "empty" in name.lower() else b"something")
    return folder


def test_one_notice_counts_each_kind(tmp_path, capsys):
    folder = make(tmp_path / "photos", [name for names in SKIPPED.values() for name in names] + OTHERS)
    found = sources.find([folder])
    assert sorted(source.name for source in found) == ["a", "town/c"]
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    for kind, names in SKIPPED.items():
        assert f"{len(names)} {kind}s" in line


@pytest.mark.parametrize("kind", SKIPPED)
def test_strict_refuses_each_kind(tmp_path, kind):
    for number, name in enumerate(SKIPPED[kind]):
        folder = make(tmp_path / str(number), [name])
        with pytest.raises(InputError, match=f"{kind} among the images"):
            list(sources.find([folder], strict=True))


def test_a_folder_of_nothing_else_has_no_image(tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    for name in ("._a.png", "Thumbs.db", "empty.jpg"):
        (tmp_path / "photos" / name).touch()
    (source,) = sources.find([tmp_path / "photos"])
    assert "no image in this folder" in str(source.error)


def test_globs_skip_the_same_and_names_do_not(tmp_path, monkeypatch, capsys):
    folder = make(tmp_path / "photos", ["empty.png", ".b.png", "Thumbs.db"])
    assert [source.name for source in sources.find([f"{folder}/*"])] == ["a"]
    assert "1 empty file, 1 system file" in capsys.readouterr().err
    # a file that is named is meant, whatever it is
    for name in ("empty.png", ".b.png"):
        assert len(list(sources.find([folder / name]))) == 1
    folder.rename(tmp_path / ".photos")
    assert len(list(sources.find([tmp_path / ".photos"]))) == 2
    assert "hidden folder" not in capsys.readouterr().err


def test_nothing_is_said_of_images_and_what_lies_beside_them(tmp_path, capsys):
    assert len(list(sources.find([make(tmp_path / "photos", OTHERS)], strict=True))) == 2
    assert capsys.readouterr().err == ""


def test_predict_passes_strict_on(tmp_path, capsys):
    folder = make(tmp_path / "photos", ["._a.png"])
    saved = tiny.save_checkpoint(tmp_path / "checkpoint")
    arguments = ["predict", str(folder), "-o", str(tmp_path / "out"), "--checkpoint", str(saved), "--device", "cpu"]
    with pytest.raises(SystemExit) as stop:
        cli.main([*arguments, "--strict"])
    assert stop.value.code == 2
    assert not (tmp_path / "out").exists()
    assert len(calls.predict([folder], tmp_path / "out", saved, device="cpu").files) == 2
