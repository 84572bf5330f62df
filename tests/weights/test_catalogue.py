"""The catalogue: every entry is complete, named by the list, and found from the command line without torch."""

import json
import re
import subprocess
import sys
from urllib.parse import urlsplit

import pytest

from ccnet_cli import config
from ccnet_cli.errors import InputError
from ccnet_cli.weights import catalogue
from ccnet_cli.weights.layouts import LAYOUTS

ENTRIES = catalogue.read().entries
# a published address once had a host with a typo in it: only these are known
HOSTS = {
    *("download.openmmlab.com", "download.pytorch.org", "dl.cv.ethz.ch", "drive.google.com", "github.com"),
    *("s3.us-west-1.wasabisys.com", "sceneparsing.csail.mit.edu"),
}


def test_every_entry_is_complete():
    settings, presets = catalogue.read().settings, config.names()
    assert len(ENTRIES) == 187 and len({entry.url or entry.file for entry in ENTRIES.values()}) == 187
    for name, entry in ENTRIES.items():
        assert re.fullmatch(r"[a-z0-9][a-z0-9-]+", name) and entry.name == name
        assert entry.licence in ("MIT", "BSD-3-Clause", "Apache-2.0")
        address = urlsplit(entry.url or entry.folder)
        assert address.hostname in HOSTS, name
        assert address.scheme == "https" or address.hostname == "sceneparsing.csail.mit.edu"
        assert entry.unusable or entry.layout in LAYOUTS
        assert entry.preset is None or entry.preset in presets
        if entry.preset is not None and entry.network != "backbone" and not name.endswith("-2020"):
            assert f"{entry.miou:.2f}" in str(config.load(entry.preset).published), name
        assert entry.setting is None or entry.setting in settings
        assert (entry.setting is None) == (entry.network == "backbone")
        assert entry.sha256 is None or re.fullmatch("[0-9a-f]{8}", entry.sha256)
        assert entry.sha1 is None or re.fullmatch("[0-9a-f]{40}", entry.sha1)
        # names of this form carry the beginning of their hash, of sha256 or of sha1
        suffix = re.search(r"-([0-9a-f]{8})\.(?:pth|zip)$", entry.path)
        assert suffix is None or suffix[1] == (entry.sha256 or entry.sha1)[:8]
        assert "/" not in entry.file_name and entry.cache.name == name
    counts = [sum(value is not None for value in map(key, ENTRIES.values())) for key in (sha256, sha1, md5)]
    assert counts == [119, 8, 25]


def sha256(entry):
    return entry.sha256


def sha1(entry):
    return entry.sha1


def md5(entry):
    return entry.md5


def test_the_list_names_every_entry_with_hash_and_licence(ccnet):
    shown = ccnet("weights", "list").stdout
    listed = json.loads(ccnet("weights", "list", "--json", "-").stdout)
    assert [each["name"] for each in listed] == list(ENTRIES)
    lines = {line.split()[0]: line for line in shown.splitlines() if line.split()[0] in ENTRIES}
    for name, entry in ENTRIES.items():
        if entry.unusable is None:
            assert entry.licence in lines[name] and (entry.sha256 or "") in lines[name]
        else:
            assert f"{name} ({entry.licence})" in shown and name not in lines
    usable = [each for each in listed if each["unusable"] is None]
    assert f"{len(usable)} files, and {187 - len(usable)} more that ccnet cannot load" in shown
    some = ccnet("weights", "list", "ccnet", "ade20k", "r50").stdout
    assert sum(name in some for name in ENTRIES) == 2 and "80k" in some and "160k" in some


def test_neither_list_nor_help_loads_torch():
    code = """
import sys
from ccnet_cli.cli.entry import main
for words in (["weights", "list"], ["weights", "list", "--json", "-"], ["weights", "show", "mit-resnet50-imagenet"]):
    try:
        main(words)
    except SystemExit as stop:
        assert not stop.code
assert not {"torch", "numpy", "cv2", "yaml"} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, timeout=60)


def test_a_name_that_is_nearly_known(ccnet):
    with pytest.raises(InputError, match="did you mean mit-resnet101-imagenet"):
        catalogue.find("mit-resnet101")
    result = ccnet("weights", "get", "mit-resnet101")
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert "see ccnet weights list" in ccnet("weights", "get", "zzz").stderr


def test_what_is_published_of_a_name(ccnet):
    shown = json.loads(ccnet("weights", "show", "ccnet-authors-r2-ohem", "--json", "-").stdout)
    assert shown["preset"] == "cityscapes-r2-ohem" and shown["licence"] == "MIT" and shown["cached"] is None
    assert shown["score"]["single"] == 80.0 and "769" in shown["score"]["measured"]
    assert "id=1eiX1Xf1o16DvQc3lkFRi4-Dk7IBVspUQ" in shown["url"]
    replaced = ENTRIES["mmseg-pspnet-r101-769-80k"]
    assert urlsplit(replaced.url).hostname == "download.openmmlab.com"
