"""Writes docs/parity.md: for every row of the parity table the largest difference from transformers.

    python tests/parity/report.py
    python tests/parity/report.py --device cuda --dtype bfloat16 --out docs/parity-cuda-bfloat16.md

In a type narrower than float32 both sides round, each in its own places. So both are then measured against
transformers in float32, from the same (rounded) weights: ours may be as far from it as transformers is.
"""

import argparse
import tempfile
from pathlib import Path

import judge as transformers_judge
import torch
import transformers
from table import TABLE
from torch import Tensor

from ayllu.machine import chip_name
from ayllu.model.weights import load_model

ROOT = Path(__file__).resolve().parents[2]


def measure(family: str, row: str, dtype: str, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (B, T, V) of ours and transformers in `dtype` on `device`, and of transformers in float32 on
    the CPU, all from weights rounded to `dtype`."""
    case = TABLE[family][row]
    kind = getattr(torch, dtype)
    rounded = transformers_judge.build(family, case)
    for tensor in rounded.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(tensor.to(kind))
    tokens_BT = transformers_judge.text(case, rows=2)
    exact_BTV = transformers_judge.logits(rounded, tokens_BT)
    with tempfile.TemporaryDirectory() as folder:
        rounded.save_pretrained(folder)
        ours = load_model(Path(folder), dtype=dtype, device=device)
        theirs = transformers_judge.load(Path(folder), kind).to(device)
    with torch.inference_mode():
        ours_BTV = ours.logits(ours.states(tokens_BT.to(device), dtype=kind))
    theirs_BTV = transformers_judge.logits(theirs, tokens_BT.to(device))
    return ours_BTV.float().cpu(), theirs_BTV.float().cpu(), exact_BTV


def row_of(family: str, row: str, dtype: str, device: str) -> tuple[str, float, float]:
    """One line of the table; the largest difference and its share of the largest logit."""
    ours, theirs, exact = measure(family, row, dtype, device)
    largest = float(exact.abs().max())
    if dtype == "float32":
        difference = float((ours - theirs).abs().max())
        cells = [f"{difference:.1e}", f"{difference / largest:.1e}", f"{largest:.1f}"]
    else:
        # The largest difference of each token.
        ours_BT, theirs_BT = ((logits - exact).abs().amax(-1) for logits in (ours, theirs))
        difference = float(ours_BT.max())
        largest_two = [f"{float(each_BT.max()):.3f}" for each_BT in (ours_BT, theirs_BT)]
        medians = [f"{float(each_BT.median()):.4f}" for each_BT in (ours_BT, theirs_BT)]
        cells = [*largest_two, *medians, f"{largest:.1f}"]
    return f"| {family} | {row} | {' | '.join(cells)} |", difference, difference / largest


def head(arguments: argparse.Namespace, worst: float, worst_relative: float) -> str:
    """What the page says above its table."""
    device = torch.cuda.get_device_name() if arguments.device.startswith("cuda") else chip_name()
    versions = f"torch {torch.__version__.split('+')[0]}, transformers {transformers.__version__}"
    count = sum(map(len, TABLE.values()))
    text = f"""# Parity with transformers

Every family that Ayllu reads, in {count} tiny configurations that differ in what can go wrong, beside the
same weights in transformers: all weights are random (norms and biases, too), saved by transformers, read by
`load_model`, and both compute the logits of the same two random texts. The configurations stand in
`tests/parity/table_llama.py` and `tests/parity/table_others.py`; their tests besides compare decoding step by
step, batches, gradients and files. transformers has no PaLM, which has a test of its own.

- written by `python {command(arguments)}`
- {device}, {arguments.dtype}; {versions}
"""
    if arguments.dtype == "float32":
        return f"""{text}- largest difference of any logit: {worst:.1e}; as a share of the largest logit: \
{worst_relative:.1e}
  (the tests allow 1e-4 and 1e-5)

| family | configuration | largest difference | relative to the largest logit | largest logit |
|---|---|---|---|---|
"""
    return f"""{text}- measured against transformers in float32 with the same rounded weights: both sides
  round on the way; a router whose best experts are nearly equal may then choose another one, so that a few
  tokens of models with experts differ much
- "median" is that over the tokens of each one's largest difference
- largest difference of any logit: {worst:.3f}

| family | configuration | ours, largest | theirs, largest | ours, median | theirs, median | largest logit |
|---|---|---|---|---|---|---|
"""


def command(arguments: argparse.Namespace) -> str:
    """The call that writes this page."""
    options = f" --device {arguments.device} --dtype {arguments.dtype}"
    plain = (arguments.device, arguments.dtype) == ("cpu", "float32")
    return "tests/parity/report.py" + ("" if plain else options)


def main() -> None:
    """Measure every row and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "parity.md")
    arguments = parser.parse_args()
    if arguments.device.startswith("cuda"):
        torch.backends.cuda.matmul.allow_tf32 = False
    lines, worst, worst_relative = [], 0.0, 0.0
    for family, rows in sorted(TABLE.items()):
        for row in rows:
            line, difference, relative = row_of(family, row, arguments.dtype, arguments.device)
            lines.append(line)
            worst, worst_relative = max(worst, difference), max(worst_relative, relative)
            print(line, flush=True)
    text = head(arguments, worst, worst_relative) + "\n".join(lines) + "\n"
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(text)


if __name__ == "__main__":
    main()
