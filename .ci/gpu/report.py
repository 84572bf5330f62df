"""One report.json and report.md of what the steps of the first minutes left in a folder.

report.py FOLDER
"""

import json
import sys
from pathlib import Path
from typing import Any


def read(path: Path) -> Any:
    """A report, or why there is none."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        return {"missing": str(error)}


def main(folder: Path) -> None:
    """Write both."""
    rows = [line.split("\t") for line in (folder / "steps.tsv").read_text().splitlines()]
    log = (folder / "log.txt").read_text(errors="replace")
    whole = {"steps": [dict(zip(("name", "outcome", "seconds"), row, strict=True)) for row in rows]}
    whole |= {path.stem: read(path) for path in sorted(folder.glob("bench-*.json"))}
    for path in sorted(folder.glob("train-*.jsonl")):
        lines = path.read_text().splitlines()
        whole[path.stem] = [json.loads(line) for line in lines[:2] + lines[-2:]]
    (folder / "report.json").write_text(json.dumps(whole | {"log": log[-20000:]}, indent=1))
    text = ["# First minutes on a GPU", "", "| step | outcome | s |", "|---|---|---|"]
    text += [f"| {' | '.join(row)} |" for row in rows]
    for check in whole.get("bench-gpu", {}).get("checks", ()):
        if not check["passed"]:
            text.append(f"\nFAILED: {check['name']} ({check['found']})")
    single = [row for row in whole.get("bench-gpu", {}).get("passes", ()) if "failed" not in row]
    if single:
        text += [
            "",
            "| size | precision | formulation | forward ms | replayed | + backward ms | error |",
            "|---" * 7 + "|",
        ]
    for row in single:
        times = [f"{row[key]['median']:.3f}" if key in row else "" for key in ("forward", "replayed", "both")]
        cells = ["x".join(map(str, row["size"])), row["precision"], row["name"], *times, f"{row['error']:.1e}"]
        text.append(f"| {' | '.join(cells)} |")
    (folder / "report.md").write_text("\n".join([*text, "", "```", *log.splitlines()[-60:], "```", ""]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
