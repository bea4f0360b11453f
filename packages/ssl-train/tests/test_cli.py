"""What the command line makes of what is typed, and how commands end. `test_conformance.py` runs
every verb."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import warnings

import numpy as np
import pytest
import tyro

from ssl_core.config import ConfigError
from ssl_core.errors import InputError
from ssl_core.method import Verb
from ssl_testing import children, faults
from ssl_testing.state import newest
from ssl_testing.tiny import RECIPES, Tiny, TinyConfig, write_pictures
from ssl_train.asked import Asked
from ssl_train.cli import commands
from ssl_train.cli import main as cli
from ssl_train.cli.verbs import VERBS, Output
from ssl_train.errors import TrainingError
from ssl_train.options import RunOptions

SHORT = ("--epochs", "0.5", "--warmup-epochs", "0", "--precision", "fp32", "--device", "cpu", "--workers", "0")
TINY = RECIPES["tiny"]
OTHER = dataclasses.replace(TINY, name="other", config=f"{__name__}:TinyConfig")
PRESETS = {"other": {"demo": lambda: TinyConfig(dim=8), "large": lambda: TinyConfig(dim=64)}}
BOTH = RECIPES | {"other": OTHER}


@pytest.fixture
def parsed(monkeypatch):
    """Parse a train command as `main` would and return (recipe, run, what is asked, options)
    instead of training."""
    seen = []
    monkeypatch.setattr(commands, "train", lambda *arguments: seen.append(arguments))

    def parse(*arguments, recipes=RECIPES):
        assert cli.main(recipes, ["train", *arguments]) == 0
        return seen[-1]

    return parse


def test_without_a_command_the_verbs_and_presets_are_listed(capsys):
    for arguments in ([], ["--help"], ["-h"]):
        assert cli.main(BOTH, arguments) == 0
        shown = capsys.readouterr().out
        assert all(re.search(rf"^  {verb} ", shown, re.M) for verb in VERBS)
        assert "methods (--method): tiny, other" in shown and "presets of other (--preset): demo, large" in shown


def test_the_version_names_the_package_and_the_core(capsys, monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda name: {"ssl-tiny": "1.2", "ssl-core": "3.4"}[name])
    assert cli.main(RECIPES, ["--version"]) == 0
    assert capsys.readouterr().out == "ssl-tiny 1.2, ssl-core 3.4\n"


def test_an_unknown_command_is_named_with_those_that_there_are(capsys):
    assert cli.main(RECIPES, ["tarin"]) == 2
    error = capsys.readouterr().err
    assert (
        error.startswith("ssl-tiny: no command 'tarin'; did you mean train? There are train, evaluate")
        and error.count("\n") == 1
    )


def test_predict_is_no_command_of_methods_that_learn_from_more_than_images(capsys):
    pairs = {name: dataclasses.replace(recipe, blank="ssl_tiny:blank_pair") for name, recipe in RECIPES.items()}
    assert cli.main(pairs, ["predict", "run", "pictures"]) == 2
    assert "no command 'predict'. There are train" in capsys.readouterr().err
    assert cli.main(pairs, ["--help"]) == 0
    assert "\n  predict " not in capsys.readouterr().out
    assert "predict" in cli.shared_verbs({**pairs, **RECIPES}), "one method of images alone is enough"


@dataclasses.dataclass(frozen=True)
class Count:
    """Count upwards."""

    to: int = 3


def count(recipe, flags):
    print(recipe.name, *range(flags.to))


def test_a_package_adds_commands_of_its_own(capsys):
    verbs = {"count": Verb(f"{__name__}:Count", f"{__name__}:count")}
    assert cli.main(BOTH, ["count", "--to", "2", "--method", "other"], verbs=verbs) == 0
    assert capsys.readouterr().out == "other 0 1\n"
    assert cli.main(RECIPES, [], verbs=verbs) == 0
    assert re.search(r"^  count +Count upwards", capsys.readouterr().out, re.M)
    assert cli.main(RECIPES, ["tarin"], verbs=verbs) == 2
    assert "compare, count" in capsys.readouterr().err


def test_the_method_of_a_run_folder_is_its_own(capsys, tmp_path, parsed):
    verbs = {"count": Verb(f"{__name__}:Weigh", f"{__name__}:weigh", methods=("tiny", "other"))}
    elsewhere = dataclasses.replace(OTHER, method="ssl_other:Other")
    for stored, name in ((TINY.method, "tiny"), ("ssl_other:Other", "other"), ("ssl_third:Third", "tiny")):
        (tmp_path / "config.json").write_text(json.dumps({"ssl_core": {"method": stored}}))
        for recipes in (RECIPES | {"other": elsewhere}, {"other": elsewhere} | RECIPES):
            assert cli.main(recipes, ["count", str(tmp_path)], verbs=verbs) == 0
            assert capsys.readouterr().out == f"{name}\n"
            assert cli.main(recipes, ["count", str(tmp_path / "model.safetensors")], verbs=verbs) == 0
            assert capsys.readouterr().out == f"{name}\n"
    Tiny(TinyConfig(dim=8)).save_pretrained(tmp_path)
    assert cli.method_of(RECIPES, ["--data", "somewhere", str(tmp_path)]) == "tiny"
    assert cli.method_of(RECIPES, ["nowhere", "--out", str(tmp_path)]) is None
    assert cli.method_of(RECIPES, ["nowhere", "--weights", str(tmp_path)]) == "tiny"
    assert parsed("--init", str(tmp_path), recipes={"other": elsewhere} | RECIPES)[0] is TINY
    assert cli.main(RECIPES | {"other": elsewhere}, ["count", "nowhere", "--method", "other"], verbs=verbs) == 0
    assert capsys.readouterr().out == "other\n"


def test_a_command_refuses_the_weights_of_a_method_that_it_is_not_for(capsys, tmp_path):
    verbs = {"count": Verb(f"{__name__}:Weigh", f"{__name__}:weigh", methods=("tiny",))}
    elsewhere = dataclasses.replace(OTHER, method="ssl_other:Other")
    (tmp_path / "config.json").write_text(json.dumps({"ssl_core": {"method": "ssl_other:Other"}}))
    for arguments in ([str(tmp_path)], ["nowhere", "--method", "other"]):
        assert cli.main({"other": elsewhere} | RECIPES, ["count", *arguments], verbs=verbs) == 2
        said = capsys.readouterr()
        assert said.err.endswith("count is for tiny, not for other\n") and not said.out
    assert cli.main({"other": elsewhere} | RECIPES, ["count", "nowhere"], verbs=verbs) == 0
    assert capsys.readouterr().out == "tiny\n"


@dataclasses.dataclass(frozen=True)
class Weigh:
    """Weigh weights."""

    weights: tyro.conf.Positional[str]


def weigh(recipe, flags):
    print(recipe.name)


def test_flags_set_the_run_the_config_and_the_options(parsed):
    recipe, run, asked, options = parsed(
        "--preset", "demo", "--data", "pictures", "--out", "here", "--epochs", "3", "--betas", "0.8", "0.9", "--clip-grad", "1.5",
        "--image-size", "16", "--workers", "3", "--compile", "--accumulate", "2",
    )  # fmt: skip
    assert recipe is TINY and (run.data, run.out) == ("pictures", "here")
    assert asked.config == TinyConfig(epochs=3.0, betas=(0.8, 0.9), clip_grad=1.5, image_size=16)
    assert asked.typed.keys() == {"epochs", "betas", "clip_grad", "image_size"}
    assert options == RunOptions(workers=3, compile=True, accumulate=2)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_flags_that_matter_first_come_first_and_the_rest_under_headings(capsys):
    with pytest.raises(SystemExit):
        cli.main(RECIPES, ["train", "--data", "x", "--help"])
    shown = capsys.readouterr().out
    boxes = re.split(r"─ ([\w ]*options) ─", shown)
    headings, found = boxes[1::2], [re.findall(r"^│ --([\w-]+)", box, re.M) for box in boxes[2::2]]
    order = ["", "data ", "views ", "network ", "tiny ", "optimiser ", "machine ", "saving ", "output "]
    assert headings == [f"{heading}options" for heading in order if f"{heading}options" in headings]
    names = [name.replace("_", "-") for name in cli.FIRST if name != "context"]
    assert found[0] == names and len(names) == 13
    flags = [flag for box in found for flag in box]
    fields = (f.name for cls in (VERBS["train"], TinyConfig, RunOptions, Output) for f in dataclasses.fields(cls))
    assert sorted(flags) == sorted(name.replace("_", "-") for name in fields), "each once"


@pytest.mark.parametrize(
    ("terminal", "env", "colours"),
    [
        (False, {}, False),
        (True, {}, True),
        (True, {"NO_COLOR": "1"}, False),
        (True, {"TERM": "dumb"}, False),
        (False, {"FORCE_COLOR": "1"}, True),
        (False, {"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
    ],
)
def test_colours_are_for_terminals_and_red_is_for_errors(terminal, env, colours, monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TERM": "xterm", **env}.items():
        monkeypatch.setenv(name, value)
    stream = Terminal if terminal else io.StringIO
    for arguments, is_error in ((["tarin"], True), (["train", "--epochz", "3"], True), (["evaluate", "--help"], False)):
        monkeypatch.setattr(sys, "stdout", stream())
        monkeypatch.setattr(sys, "stderr", stream())
        with contextlib.suppress(SystemExit):
            cli.main(RECIPES, arguments)
        said = (sys.stderr if is_error else sys.stdout).getvalue()
        assert said and ("\033" in said) == colours
        assert bool(re.search(r"\033\[[\d;]*[39]1m", said)) == (colours and is_error), repr(said)


def test_quiet_says_the_result_alone_and_json_is_the_only_thing_on_stdout(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = ["train", *SHORT, "--out", "run"]
    assert cli.main(RECIPES, [*line, "--quiet"]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("steps") and "next     ssl-tiny evaluate run" in said.out and not said.err
    assert cli.main(RECIPES, [*line, "--json"]) == 0
    said = capsys.readouterr()
    facts = json.loads(said.out)
    assert (facts["run"], facts["last"]["step"]) == ("run", 4) and "parameters, " in said.err
    assert cli.main(RECIPES, ["info", "run", "--device", "cpu", "--json", "--quiet"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["trained"] > 0 and not said.err
    assert cli.main(RECIPES, ["embed", "nowhere", "--json"]) == 2
    said = capsys.readouterr()
    assert not said.out and "nowhere" in said.err


def test_the_commands_that_come_next_work_as_they_are_printed(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "my pictures (1)", TinyConfig(), 40)
    done = ["train", "--data", "my pictures (1)", "--max-steps", "2", "--workers", "0", "--out", "it's mine"]
    ran = []
    for _ in range(4):
        assert cli.main(RECIPES, [*done, "--json"]) == 0
        ran.append(done[0])
        following = json.loads(capsys.readouterr().out).get("next", [])
        if following and following[-1].startswith("python"):
            done = shlex.split(following[0])
            break
        # evaluate after train, then push and embed
        done = shlex.split(next((c for c in following if c.split()[1] not in ran and "push" not in c), following[0]))[
            1:
        ]
    assert ran == ["train", "evaluate", "embed"]
    assert subprocess.run([sys.executable, *done[1:]], capture_output=True, text=True).stdout == "(40, 16)\n"
    assert cli.main(RECIPES, ["push", "it's mine", "me/it-s-mine", "--dry-run"]) == 0


def test_ctrl_c_outside_a_run_ends_with_130_and_a_line(capsys, monkeypatch):
    monkeypatch.setattr(commands, "export", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert cli.main(RECIPES, ["export", "a", "b"]) == 130
    assert capsys.readouterr().err == "ssl-tiny: stopped\n"


def test_a_reader_that_leaves_ends_the_command_with_141_and_no_words():
    def typed():
        reading, writing = os.pipe()
        os.close(reading)
        sys.stdout = os.fdopen(writing, "w")
        sys.exit(cli.main(RECIPES, ["info", "--device", "cpu"]))

    ended = children.run(typed)
    assert ended.code == 141 and "Error" not in ended.output, ended


def test_help_shows_the_bounds_of_every_field_beside_its_default(capsys):
    with pytest.raises(SystemExit):
        cli.main(RECIPES, ["train", "--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--epochs FLOAT passes over the data (above 0, default: 2.5)" in shown
    assert "--betas FLOAT FLOAT AdamW's momenta (at least 0 and below 1, default: 0.9 0.999)" in shown
    assert "--clip-grad FLOAT largest norm of the whole gradient (above 0) --precision" in shown
    assert "(at least 1, default: 10)" in shown, "--log-every, an option of the run"
    assert "width of the features (default: 16)" in shown, "--dim, which states none"


def test_a_file_wins_over_the_preset_and_a_flag_over_the_file(parsed, tmp_path):
    (tmp_path / "a.toml").write_text("dim = 32\nepochs = 7\n")
    (tmp_path / "a.json").write_text('{"dim": 32, "epochs": 7}')
    for name in ("a.toml", "a.json"):
        file = ("--config", str(tmp_path / name))
        assert parsed(*file)[2].config == TinyConfig(dim=32, epochs=7.0)
        assert parsed(*file, "--epochs", "9")[2].config == TinyConfig(dim=32, epochs=9.0)
        assert parsed("--preset", "large", *file, recipes={"other": OTHER})[2].config == TinyConfig(dim=32, epochs=7.0)
    assert parsed("--preset", "large", recipes={"other": OTHER})[2].config.dim == 64


def test_the_demo_is_the_default_for_the_built_in_data_and_a_choice_for_others(parsed):
    assert parsed(recipes={"other": OTHER})[2].config == TinyConfig(dim=8)
    for data in (("--data", "pictures"), ("--data", "pictures", "--preset", "auto")):
        asked = parsed(*data, "--epochs=3", "--minutes", "5", recipes={"other": OTHER})[2]
        assert asked == Asked(None, {"epochs": 3.0}, minutes=5.0)
    named = parsed("--data", "pictures", "--preset", "large", "--max-steps", "7", recipes={"other": OTHER})[2]
    assert named == Asked(TinyConfig(dim=64), {}, max_steps=7)


def test_the_architecture_of_init_is_taken_and_its_recipe_is_not(parsed, tmp_path):
    Tiny(TinyConfig(dim=8, epochs=77)).save_pretrained(tmp_path)
    _, run, asked, _ = parsed("--init", str(tmp_path))
    assert run.init == str(tmp_path) and (asked.config.dim, asked.config.epochs) == (8, TinyConfig().epochs)


def test_a_method_is_chosen_by_name_the_first_by_default(parsed, capsys):
    assert parsed(recipes=BOTH)[0] is TINY
    assert parsed("--method", "other", recipes=BOTH)[0] is OTHER
    assert cli.main(BOTH, ["train", "--method", "third"]) == 2
    assert capsys.readouterr().err == "ssl-tiny: no method 'third'; there are tiny, other\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--epochs", "nan"), "epochs = nan: must be finite"),
        (("--epochs", "inf"), "epochs = inf: must be finite"),
        (("--epochs", "three"), "three"),
        (("--batch-size", "-1"), "batch_size = -1: must be at least 1"),
        (("--precision", "fp64"), "fp64"),
        (("--workers", "-1"), "workers = -1"),
        (("--preset", "huge"), "no preset 'huge'; there are demo"),
        (("--data",), "--data"),
        (("stray",), "stray"),
    ],
)
def test_a_wrong_value_ends_with_2_and_is_named(arguments, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        code = cli.main(RECIPES, ["train", *arguments])
    except SystemExit as end:
        code = end.code
    shown = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert code == 2 and said in shown, shown
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("error", "code"),
    [(InputError("x"), 2), (ConfigError("x"), 2), (FileNotFoundError("x"), 2), (TrainingError("x"), 3)],
    ids=lambda value: type(value).__name__,
)
def test_each_kind_of_error_has_its_exit_code_and_one_line(error, code, capsys, monkeypatch):
    def fail(*arguments):
        raise error

    monkeypatch.setattr(commands, "info", fail)
    assert cli.main(RECIPES, ["info"]) == code
    assert capsys.readouterr().err == "ssl-tiny: x\n"


def test_a_file_that_fails_is_named_in_words(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    for arguments in (["push", "nowhere", "me/model"], ["train", "--config", "nowhere.toml"],
                      ["embed", "file", "--device", "cpu"], ["train", "--out", "file/run", "--device", "cpu"]):  # fmt: skip
        assert cli.main(RECIPES, arguments) == 2
        said = capsys.readouterr().err
        assert "Errno" not in said and ("nowhere" in said or "file" in said), said
    for error, words in ((FileNotFoundError(2, "No such file or directory", "x"), "x: no such file or directory"),
                         (PermissionError(13, "Permission denied", "x"), "x: permission denied"),
                         (OSError(30, "Read-only file system", "x"), "x: read-only file system")):  # fmt: skip
        monkeypatch.setattr(commands, "export", lambda *_, error=error: (_ for _ in ()).throw(error))
        assert cli.main(RECIPES, ["export", "a", "b"]) == 2
        assert capsys.readouterr().err == f"ssl-tiny: {words}\n"


def test_an_error_of_the_system_without_a_file_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(commands, "export", lambda *_: (_ for _ in ()).throw(OSError(5, "Input/output error")))
    with pytest.raises(OSError, match="Input/output"):
        cli.main(RECIPES, ["export", "a", "b"])


def test_a_warning_is_a_line_without_source_code():
    def warn(*arguments):
        warnings.warn("3 files are damaged", stacklevel=1)

    def typed():
        commands.export = warn
        sys.exit(cli.main(RECIPES, ["export", "a", "b"]))

    before = warnings.formatwarning
    ended = children.run(typed, warns=True)
    assert ended.code == 0 and "ssl-tiny: warning: 3 files are damaged" in ended.output.splitlines(), ended
    assert warnings.formatwarning is before


def test_help_names_what_is_typed(capsys):
    for arguments, wanted in (
        (["push"], ["FOLDER REPO-ID", "--revision STR"]),
        (["export"], ["WEIGHTS OUT"]),
        (["info"], ["[WEIGHTS]", "--epochs FLOAT", "the paper's recipe"]),
        (["train"], ["machine options", "saving options", "output options", "--preset demo, as no --data is given"]),
        (["train", "--data", "x"], ["are those of the paper's recipe"]),
    ):
        with pytest.raises(SystemExit):
            cli.main(RECIPES, [*arguments, "--help"])
        shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
        assert [words for words in wanted if words not in shown] == []
        for noise in ("{None}", "STR STR", "options options", "default: None", "default: )"):
            assert noise not in shown, f"{arguments[0]} --help says {noise}"


def test_info_takes_the_settings_of_train(capsys, tmp_path):
    Tiny(TinyConfig(dim=8)).save_pretrained(tmp_path / "weights")
    (tmp_path / "a.toml").write_text("batch_size = 32\n")
    for arguments, size in (((), 8), (("--batch-size", "64"), 64), (("--config", str(tmp_path / "a.toml")), 32)):
        for weights in ((), (str(tmp_path / "weights"),)):
            if weights and "--config" in arguments:
                continue
            assert cli.main(RECIPES, ["info", *weights, *arguments, "--device", "cpu"]) == 0
            assert f"a batch of {size}" in capsys.readouterr().out
    assert cli.main(RECIPES, ["info", str(tmp_path / "weights"), "--device", "cpu"]) == 0
    small = capsys.readouterr().out.splitlines()[0]
    assert cli.main(RECIPES, ["info", str(tmp_path / "weights"), "--dim", "64", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.splitlines()[0] != small, "another architecture has another size"


@pytest.mark.parametrize(
    "flag", [("--batch-size", "0"), ("--workers", "-1"), ("--max-pixels", "0"), ("--precision", "fp64")]
)
@pytest.mark.parametrize("verb", ["evaluate", "embed"])
def test_a_flag_of_every_verb_has_bounds(verb, flag, capsys):
    try:
        code = cli.main(RECIPES, [verb, "weights", *flag])
    except SystemExit as end:
        code = end.code
    said = capsys.readouterr().err
    assert code == 2 and (flag[0].strip("-").replace("-", "_") in said or flag[0] in said)


def test_max_pixels_leaves_out_large_images_and_lets_larger_ones_in(tmp_path, capsys, monkeypatch):
    from PIL import Image

    Tiny(TinyConfig(max_pixels=100)).save_pretrained(tmp_path / "weights")
    for name, side in (("small", 8), ("large", 20)):
        Image.new("RGB", (side, side)).save(tmp_path / f"{name}.png")
    command = [
        "embed",
        str(tmp_path / "weights"),
        "--data",
        str(tmp_path),
        "--out",
        str(tmp_path / "f.npz"),
        "--device",
        "cpu",
    ]
    with pytest.warns(UserWarning, match="large.png: 20 x 20 pixels .* raise the limit with --max-pixels"):
        assert cli.main(RECIPES, command) == 0
    assert "1 features" in capsys.readouterr().out
    assert cli.main(RECIPES, [*command, "--max-pixels", "400", "--batch-size", "1", "--precision", "bf16"]) == 0
    assert "2 features" in capsys.readouterr().out


def test_a_bug_keeps_its_traceback(monkeypatch):
    def fail(*arguments):
        raise KeyError("bug")

    monkeypatch.setattr(commands, "info", fail)
    with pytest.raises(KeyError, match="bug"):
        cli.main(RECIPES, ["info"])


def train(folder, *faulty, arguments=SHORT):
    """`train` typed in a child, with faults."""

    def typed():
        os.chdir(folder)
        for fault in faulty:
            fault(Tiny, 4)
        sys.exit(cli.main(RECIPES, ["train", *arguments, "--out", "run"]))

    return children.run(typed, warns=True)


def test_a_stopped_run_ends_with_75_and_the_same_command_finishes_it(tmp_path):
    stopped = train(tmp_path, faults.kill(1, signal.SIGTERM))
    assert stopped.code == 75 and "Traceback" not in stopped.output
    assert "ssl-tiny: told to stop, step 2 is saved: the same command goes on" in stopped.output.splitlines()
    assert newest(tmp_path / "run").name == "step-000002"
    ended = train(tmp_path)
    assert ended.code == 0 and "steps 4 (0.5 epochs)" in " ".join(ended.output.split()), ended
    assert newest(tmp_path / "run").name == "step-000004"


def test_figures_that_cannot_be_drawn_are_a_warning_and_the_run_is_whole(tmp_path, monkeypatch):
    def broken(*arguments):
        raise ZeroDivisionError("no room for the title")

    monkeypatch.setattr(commands, "figures", broken)
    ended = train(tmp_path)
    assert ended.code == 0 and "Traceback" not in ended.output, ended
    said = (
        "could not be drawn (ZeroDivisionError: no room for the title); the weights are in run, and `ssl-tiny show run`"
    )
    assert said in ended.output
    assert {"model.safetensors", "report.html", "README.md"} <= {path.name for path in (tmp_path / "run").iterdir()}


def test_data_that_cannot_be_evaluated_as_asked_ends_with_2_and_a_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Tiny(TinyConfig()).save_pretrained("weights")
    labels = np.arange(40) % 2
    labels[2::2] = 1  # one sample of class 0
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    np.savez("few.npz", images=images, labels=labels)
    np.savez("test.npz", images=images[::-1], labels=labels[::-1])
    for arguments, said in (
        (("--data", "few.npz", "--test", "few.npz"), "train and test are the same samples"),
        (
            ("--data", "few.npz", "--test", "test.npz", "--shots", "30"),
            "30 shots cannot be drawn from it: ask for fewer",
        ),
    ):
        code = cli.main(RECIPES, ["evaluate", "weights", *arguments, "--protocols", "fewshot", "--device", "cpu"])
        error = capsys.readouterr().err
        assert code == 2 and said in error and "Traceback" not in error, error


def test_a_loss_that_is_not_finite_ends_with_3_and_a_line(tmp_path):
    ended = train(tmp_path, faults.poison(2))
    assert ended.code == 3 and "ssl-tiny: loss is nan at step 2; the weights were not changed" in ended.output, ended
    assert "Traceback" not in ended.output


def test_a_changed_setting_ends_with_2_and_shows_it(tmp_path):
    assert train(tmp_path).code == 0
    ended = train(tmp_path, arguments=(*SHORT, "--seed", "5"))
    assert ended.code == 2 and "seed: 0 → 5" in ended.output and "Traceback" not in ended.output, ended


def test_what_a_run_says_can_be_typed(tmp_path):
    ended = train(tmp_path)
    assert ended.code == 0, ended
    assert re.search(r"next +ssl-tiny evaluate run$", ended.output, re.M)
    listed = json.loads((tmp_path / "run" / "run.json").read_text())
    assert listed["config"]["epochs"] == 0.5 and listed["data"] == "built-in"


def test_help_of_every_verb_names_its_flags(capsys):
    for verb, cls in VERBS.items():
        with pytest.raises(SystemExit) as end:
            cli.main(RECIPES, [verb, "--help"])
        shown = capsys.readouterr().out
        assert end.value.code == 0
        for field in dataclasses.fields(cls):
            if "Positional" in field.type:  # tyro shows those by their type
                continue
            assert field.name.replace("_", "-").upper() in shown.upper(), f"{verb} --help says nothing of {field.name}"


def test_few_shot_takes_what_the_smallest_class_has(tmp_path, capsys):
    Tiny(TinyConfig()).save_pretrained(tmp_path / "weights")
    data = write_pictures(tmp_path / "data", TinyConfig(), 17)  # 4 or 5 of a class, of which one is held out
    line = ["evaluate", str(tmp_path / "weights"), "--data", str(data), "--protocols", "fewshot", "--device", "cpu"]
    assert cli.main(RECIPES, line) == 0
    assert "3-shot" in capsys.readouterr().out
    assert cli.main(RECIPES, [*line, "--shots", "5"]) == 2
    assert "5 shots cannot be drawn" in capsys.readouterr().err
