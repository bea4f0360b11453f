"""Tests of the command line: verbs work on a small run, and bad input gives a clear line."""

from __future__ import annotations

import io
import json
import os
import re
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ssl_core.config import to_dict
from ssl_core.hub.layout import layout_of
from ssl_core.method import load
from ssl_testing import children
from ssl_testing.children import Ended
from ssl_testing.strangers import STRANGERS
from ssl_testing.suite import Suite
from ssl_train.cli.main import main, shared_verbs


class Commands(Suite):
    def command(self, *arguments: Any, folder: Path) -> Ended:
        """Run one command in `folder`."""

        def typed() -> None:
            os.chdir(folder)
            sys.exit(main({self.recipe.name: self.recipe}, [str(argument) for argument in arguments]))

        return children.run(typed, warns=True)

    def test_the_commands_work_on_a_small_run(self, tmp_path):
        data = self.write_data(tmp_path / "data")
        config = self.settings(epochs=3 / 8, warmup_epochs=0.0)
        (tmp_path / "tiny.json").write_text(json.dumps(to_dict(config)), "utf-8")
        exports = layout_of(load(self.recipe.method)).exports if self.exports is None else self.exports
        lines = [
            ("train", "--config", "tiny.json", "--data", data, "--out", "run", "--device", "cpu", "--workers", "0"),
            ("evaluate", "run", "--data", data, "--protocols", "knn", "--device", "cpu"),
            ("embed", "run", "--data", data, "--out", "features.npz", "--device", "cpu"),
            ("show", "run", "--data", data, "--device", "cpu"),
            ("info", "run", "--device", "cpu"),
            *(("export", "run", f"to-{name}", "--to", name) for name in exports),
            *([("export", "run", "program", "--to", "torch")] if self.has_program else []),
        ]

        def typed() -> None:
            os.chdir(tmp_path)
            for line in lines:
                with redirect_stdout(io.StringIO()) as result:
                    code = main({self.recipe.name: self.recipe}, [*map(str, line), "--json"])
                assert code == 0, f"{line[0]} exits with code {code}"
                facts = json.loads(result.getvalue())
                assert isinstance(facts, dict) and facts, f"{line[0]} --json says nothing"

        # one child for all verbs, so that each import happens once
        ended = children.run(typed, warns=True)
        assert ended.code == 0, ended
        run = tmp_path / "run"
        made = ("config.json", "model.safetensors", "metrics.jsonl", "evaluation.json", "report.html", "README.md")
        assert [name for name in made if not (run / name).is_file()] == []
        assert json.loads((run / "figures" / "captions.json").read_text("utf-8")), "show drew nothing"
        with np.load(tmp_path / "features.npz") as features:
            assert features["features"].shape[0] == len(features["paths"]) == 64
            assert np.isfinite(features["features"]).all()
        for name in exports:
            assert (tmp_path / f"to-{name}" / "model.safetensors").is_file(), f"export --to {name} wrote no weights"
        assert bool(list((tmp_path / "program").glob("*.pt2"))) == self.has_program, (
            "export --to torch wrote no program"
        )

    def test_any_folder_trains_with_nothing_but_its_name(self, tmp_path):
        for name in self.folders:
            self.write_strangers(tmp_path / name, STRANGERS[name])
        short = ("--max-steps", "3", "--workers", "0", "--device", "cpu")

        def typed() -> None:
            os.chdir(tmp_path)
            for name in self.folders:
                code = main({self.recipe.name: self.recipe}, ["train", "--data", name, "--out", f"run {name}", *short])
                assert code == 0, f"{name}: exit code {code}"

        ended = children.run(typed, warns=True)
        assert ended.code == 0, ended
        for name in self.folders:
            run = tmp_path / f"run {name}"
            made = ("model.safetensors", "report.html", "README.md", "figures/captions.json")
            assert [file for file in made if not (run / file).is_file()] == [], name
            last = json.loads((run / "metrics.jsonl").read_text("utf-8").splitlines()[-1])
            assert last["step"] == 3 and np.isfinite(last["loss"]), name

    @pytest.mark.parametrize(
        "line",
        [
            ("train", "--data", "nowhere"),
            ("train", "--data", "empty"),
            ("train", "--epochz", "3"),
            ("train", "--batch-size", "0"),
            ("train", "--config", "nothing.json"),
            ("train", "--preset", "nothing"),
            ("train", "--init", "./nothing"),
            ("train", "--device", "nothing"),
            ("evaluate", "./nothing"),
            ("embed", "./nothing"),
            ("show", "./nothing"),
            ("info", "./nothing"),
            ("export", "./nothing", "out"),
            ("nothing",),
        ],
        ids=" ".join,
    )
    def test_bad_input_exits_with_2_and_a_clear_line(self, line, tmp_path):
        (tmp_path / "empty").mkdir()
        ended = self.command(*line, folder=tmp_path)
        assert ended.code == 2, f"{' '.join(line)} should exit with code 2: {ended}"
        assert "Traceback" not in ended.output and 0 < ended.output.count("\n") <= 12, f"{' '.join(line)}: {ended}"
        named = re.search("no(thing|where)|empty|epochz|batch_size", ended.output)
        assert named, f"the message does not name what is wrong: {ended}"

    def test_every_command_explains_itself(self, tmp_path):
        for verb in shared_verbs({self.recipe.name: self.recipe}):
            ended = self.command(verb, "--help", folder=tmp_path)
            assert ended.code == 0 and "--" in ended.output, f"{verb} --help: {ended}"
