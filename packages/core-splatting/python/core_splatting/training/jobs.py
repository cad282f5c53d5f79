"""Jobs that train: `core run splatting.train`, `splatting.prune4d`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from . import Trainer


def train(
    scene: Annotated[Path, typer.Argument(help="folder with a COLMAP model, or with transforms.json, or that file")],
    out: Annotated[Path, typer.Option("-o", "--out", help=".ply, .compressed.ply, .splat or .spz; .4dgs in 4D")],
    steps: Annotated[int, typer.Option(help="steps of the run; the schedule shortens below 7,000", min=1)] = 30_000,
    downscale: Annotated[int, typer.Option(help="by which the photographs' sides are divided", min=1)] = 1,
    strategy: Annotated[str, typer.Option(help="default, or mcmc")] = "default",
    most: Annotated[int, typer.Option(help="at most so many Gaussians", min=4)] = 1_000_000,
    sh_degree: Annotated[int, typer.Option(help="degree of the spherical harmonics", min=0, max=3)] = 3,
    duration: Annotated[
        float, typer.Option(help="above 0: photographs have times from 0 to this; trains 4D Gaussians", min=0)
    ] = 0.0,
    batch: Annotated[int, typer.Option(help="photographs of a step", min=1)] = 1,
    absgrad: Annotated[bool, typer.Option(help="densify by absolute gradients, with threshold 0.0008")] = False,
    hold_out: Annotated[int, typer.Option(help="each such view is kept to judge by; 0 for none", min=0)] = 8,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto")] = "auto",
    checkpoint: Annotated[
        Path | None, typer.Option(help=".safetensors, written at the end and every 1000 steps")
    ] = None,
    resume: Annotated[bool, typer.Option(help="go on from the checkpoint if it exists")] = False,
    seed: Annotated[int, typer.Option(help="of everything random")] = 0,
) -> None:
    """Trains 3D Gaussians on posed photographs, or 4D ones on a video of several cameras, and writes them; says PSNR
    and SSIM of the views held out."""
    import torch

    from ..scenes import load_scene
    from . import Config, Trainer

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    changes: dict[str, Any] = {"strategy": strategy, "most": most, "sh_degree": sh_degree, "seed": seed}
    changes |= {"duration": duration, "batch": batch}
    if absgrad:
        changes |= {"absgrad": True, "grow_gradient": 8e-4}
    try:
        trainer = Trainer(
            load_scene(scene), Config.for_steps(steps, **changes), downscale=downscale, device=device, hold_out=hold_out
        )
        if resume and checkpoint is not None and checkpoint.exists():
            trainer.load(checkpoint)
    except (OSError, ValueError) as e:
        raise SystemExit(f"core: {e}") from None
    _run(trainer, "train", checkpoint)
    trainer.model.write(out)
    print(_quality(trainer))


def _run(trainer: Trainer, name: str, checkpoint: Path | None = None, stop: int | None = None) -> None:
    """Trains to the end of the run, or to a step before it, with a progress bar."""
    import rich.progress

    steps = trainer.config.steps if stop is None else stop
    columns = (*rich.progress.Progress.get_default_columns(), rich.progress.TextColumn("{task.fields[now]}"))
    with rich.progress.Progress(*columns) as progress:
        task = progress.add_task(name, total=steps, completed=trainer.step, now="")
        for loss in trainer.run(steps - trainer.step):
            if trainer.step % 20 == 0 or trainer.step == steps:
                now = f"loss {float(loss):.4f}, {len(trainer.model):,} Gaussians"
                progress.update(task, completed=trainer.step, now=now)
            if checkpoint is not None and (trainer.step % 1000 == 0 or trainer.step == steps):
                trainer.save(checkpoint)


def _quality(trainer: Trainer) -> str:
    found = trainer.evaluate()
    return (
        f"{len(trainer.model):,} Gaussians; {len(trainer.held)} views held out: "
        f"PSNR {found['psnr']:.2f} dB, SSIM {found['ssim']:.4f}"
    )


def prune4d(
    scene: Annotated[Path, typer.Argument(help="the photographs on which it was trained, as for splatting.train")],
    source: Annotated[Path, typer.Argument(help="checkpoint of a 4D run of splatting.train")],
    out: Annotated[Path, typer.Option("-o", "--out", help="container of 4D Gaussians (.4dgs) to write")],
    prune: Annotated[float, typer.Option(help="share of the Gaussians that goes", min=0, max=1)] = 0.8,
    interval: Annotated[int, typer.Option(help="a key frame at each so manieth time", min=1)] = 20,
    key_frames: Annotated[int, typer.Option(help="so many key frames instead; 0 for --interval", min=0)] = 0,
    steps: Annotated[int, typer.Option(help="of the fine-tuning", min=0)] = 5000,
    entries: Annotated[int, typer.Option(help="of a code book, at most", min=1, max=65536)] = 4096,
    downscale: Annotated[int, typer.Option(help="as in training", min=1)] = 1,
    hold_out: Annotated[int, typer.Option(help="as in training", min=0)] = 8,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto")] = "auto",
) -> None:
    """Prunes a trained 4D scene by its variation score, filters it by key frames, fine-tunes it, the last fifth
    of the steps with its colours quantised, and writes it: 4DGS-1K (arXiv 2503.16422); for D-NeRF it has --prune 0.85
    --key-frames 6."""
    import torch

    from ..formats.container4d import write_4d
    from ..scenes import load_scene
    from . import Trainer
    from . import prune as pruning

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        views = load_scene(scene)
        trainer = Trainer.resume(source, views, downscale=downscale, device=device, hold_out=hold_out)
        before = _quality(trainer)
        pruning.prune(trainer, prune, interval=interval, key_frames=key_frames, steps=steps)
    except (OSError, ValueError) as e:
        raise SystemExit(f"core: {e}") from None
    print(f"trained: {before}")
    print(f"pruned and filtered: {_quality(trainer)}")
    _run(trainer, "fine-tune", stop=trainer.config.steps - steps // 5)
    pruning.tie(trainer, entries)
    _run(trainer, "fine-tune with code books")
    pruning.finish(trainer)
    print(f"fine-tuned: {_quality(trainer)}")
    write_4d(out, trainer.model.gaussians(), entries=entries, seed=trainer.config.seed)
    print(f"{out}: {out.stat().st_size:,} bytes")
