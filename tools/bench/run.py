"""Speed and memory of our code beside that of other projects.

    python -m tools.bench                                       every subject
    python -m tools.bench mae_step attention                    some of them
    python -m tools.bench mae_step -- --threads 2 --clock wall  flags for the subjects

The subjects are the scripts beside this file. Each also runs by itself, and its `--help` lists its
flags.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

SUBJECTS = (
    "mae_step",
    "beit_step",
    "dvae_step",
    "visible_tokens",
    "attention",
    "optimizer",
    "loader",
    "views",
    "photographs",
    "knn",
    "contrastive_loss",
    "contrastive_step",
    "end_to_end",
    "imports",
    "dino_step",
    "dino_loss",
    "clip_loss",
    "clip_step",
    "image_search",
    "gpt_step",
    "generation",
    "text_loss",
    "prepare_text",
    "pretext_step",
    "bert_t5_step",
)


def main() -> None:
    cut = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subjects", nargs="*", metavar="subject", help=f"{', '.join(SUBJECTS)}; all by default")
    subjects = parser.parse_args(sys.argv[1:cut]).subjects or SUBJECTS
    if unknown := set(subjects) - set(SUBJECTS):
        parser.error(f"there is no {', '.join(sorted(unknown))}, only {', '.join(SUBJECTS)}")
    scripts = [Path(__file__).with_name(f"{subject}.py") for subject in subjects]
    failed = [path.stem for path in scripts if subprocess.run([sys.executable, path, *sys.argv[cut + 1 :]]).returncode]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
