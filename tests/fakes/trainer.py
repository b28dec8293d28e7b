"""A stand-in for ``xtuner train``: prints mmengine's lines and misbehaves as told. No torch.

python tests/fakes/trainer.py RUN_DIR --steps 100 --seconds 0.02 [faults]
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

#: Longest life of a left-over process, so that a failing test leaves nothing for long.
_LIFE = 90


def line(step: int, steps: int, loss: float | str) -> str:
    return (
        f"11/24 19:40:31 - mmengine - INFO - Iter(train) [{step:>4}/{steps}]  lr: 1.0000e-03  "
        f"eta: 0:01:00  time: 0.0200  data_time: 0.0010  memory: 1500  loss: {loss}  "
        f"grad_norm: 1.2345  tokens_per_s: 165.0"
    )


def sleeper(new_session: bool) -> None:
    """A descendant that ignores SIGTERM."""
    code = f"import signal,time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep({_LIFE})"
    subprocess.Popen([sys.executable, "-c", code], start_new_session=new_session)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=0.02, help="per step")
    parser.add_argument("--end-at", type=int, help="leave early, without a result")
    parser.add_argument("--exit", type=int, default=0)
    parser.add_argument("--wrapped", action="store_true", help="in a child whose status is lost")
    parser.add_argument("--stubborn", action="store_true", help="ignore SIGTERM, fork, setsid")
    parser.add_argument("--say", default="", help="print this at the end")
    parser.add_argument("--die", type=int, help="signal to send to itself at the end")
    parser.add_argument("--nan-from", type=int)
    parser.add_argument("--jump-at", type=int)
    parser.add_argument("--silent-at", type=int, help="say nothing for --silence seconds")
    parser.add_argument("--silence", type=float, default=2.0)
    parser.add_argument("--leave-behind", action="store_true", help="end well, leave a process")
    parser.add_argument("--print-env", action="store_true")
    return parser.parse_args()


def main() -> int:
    args = parse()
    if args.wrapped:
        subprocess.run([sys.executable, *[a for a in sys.argv if a != "--wrapped"]], check=False)
        return 0  # as xtuner's command line does
    if args.stubborn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        sleeper(new_session=False)
        sleeper(new_session=True)
    if args.leave_behind:
        sleeper(new_session=True)
    if args.print_env:
        print("\n".join(f"{k}={v}" for k, v in os.environ.items()), flush=True)
    for step in range(1, (args.end_at or args.steps) + 1):
        loss: float | str = round(3.0 / step**0.3, 4)
        if args.nan_from and step >= args.nan_from:
            loss = "nan"
        if step == args.jump_at:
            loss = 4000.0
        if step == args.silent_at:
            time.sleep(args.silence)
        print(line(step, args.steps, loss), flush=True)
        time.sleep(args.seconds)
    if args.say:
        print(args.say, flush=True)
    if args.die:
        os.kill(os.getpid(), args.die)
    if args.exit == 0 and not args.end_at:
        partial = args.run_dir / "result.json.partial"
        partial.write_text(f'{{"final": "iter_{args.steps}.pth"}}\n')
        partial.replace(args.run_dir / "result.json")
    return args.exit


if __name__ == "__main__":
    sys.exit(main())
