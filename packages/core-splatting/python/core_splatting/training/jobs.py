"""Jobs around trained scenes: `core run splatting.train`, `splatting.prune4d`, `splatting.render`, `splatting.view`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from core_registry import files
from numpy.typing import NDArray

from .. import formats
from ..rasterize import rasterization

if TYPE_CHECKING:
    from . import Trainer


def train(
    scene: Annotated[Path, typer.Argument(help="folder with a COLMAP model, or with transforms.json, or that file")],
    out: Annotated[Path, typer.Option("-o", "--out", help=".ply, .compressed.ply, .splat or .spz; .4dgs in 4D")],
    steps: Annotated[int, typer.Option(help="steps of the run; the schedule shortens below 7,000", min=1)] = 30_000,
    downscale: Annotated[int, typer.Option(help="by which the photographs' sides are divided", min=1)] = 1,
    strategy: Annotated[str, typer.Option(help="default, or mcmc")] = "default",
    most: Annotated[int, typer.Option(help="at most so many Gaussians", min=1)] = 1_000_000,
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


def _run(trainer: Trainer, name: str, checkpoint: Path | None = None) -> None:
    """Trains to the end of the run with a progress bar."""
    import rich.progress

    steps = trainer.config.steps
    columns = (*rich.progress.Progress.get_default_columns(), rich.progress.TextColumn("{task.fields[now]}"))
    with rich.progress.Progress(*columns) as progress:
        task = progress.add_task(name, total=steps, completed=trainer.step, now="")
        for loss in trainer.run(steps):
            progress.update(task, completed=trainer.step, now=f"loss {loss:.4f}, {len(trainer.model):,} Gaussians")
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
    """Prunes a trained 4D scene by its variation score, filters it by key frames, fine-tunes it and writes it with its
    colours quantised: 4DGS-1K (arXiv 2503.16422); for D-NeRF it has --prune 0.85 --key-frames 6."""
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
    _run(trainer, "fine-tune")
    pruning.finish(trainer)
    print(f"fine-tuned: {_quality(trainer)}")
    write_4d(out, trainer.model.gaussians(), entries=entries, seed=trainer.config.seed)
    print(f"{out}: {out.stat().st_size:,} bytes")


def render_gaussians(
    gaussians: formats.Gaussians, viewmat: NDArray[Any], K: NDArray[Any], width: int, height: int
) -> NDArray[np.uint8]:
    """The (H, W, 3) picture of one camera on black."""
    g = gaussians
    camera = [np.ascontiguousarray(m, np.float32)[None] for m in (viewmat, K)]
    image, _, _ = rasterization(
        g.means, g.quats, g.scales, g.opacities, g.sh, *camera, width, height, sh_degree=g.sh_degree
    )
    picture: NDArray[np.uint8] = np.rint(image[0].clip(0, 1) * 255).astype(np.uint8)
    return picture


@dataclasses.dataclass(frozen=True)
class Orbit:
    """Cameras on a circle around a point, the axis `up` away from the ground; -y as in COLMAP and .ply."""

    centre: NDArray[Any]
    distance: float
    up: tuple[float, float, float] = (0.0, -1.0, 0.0)

    @staticmethod
    def around(gaussians: formats.Gaussians) -> Orbit:
        """Around the middle of the Gaussians, as far as nine in ten of them need."""
        finite = gaussians.means[np.isfinite(gaussians.means).all(1)].astype(np.float64)
        if not len(finite):
            raise ValueError("there is no Gaussian with a finite centre")
        centre = np.median(finite, 0)
        return Orbit(centre, 2.5 * float(np.quantile(np.linalg.norm(finite - centre, axis=1), 0.9)) + 1e-6)

    def viewmat(self, turn: float) -> NDArray[Any]:
        """(4, 4) world to camera after `turn` of the circle, 0 to 1, a little from above."""
        up = np.asarray(self.up, np.float64)
        side = np.cross(up, [0.0, 0, 1] if abs(up[2]) < 0.9 else [1.0, 0, 0])
        front = np.cross(side, up)
        angle = 2 * np.pi * turn
        away = np.cos(angle) * front + np.sin(angle) * side + 0.3 * up
        forward = -away / np.linalg.norm(away)
        right = np.cross(forward, up)
        right /= np.linalg.norm(right)
        matrix = np.eye(4)
        matrix[:3, :3] = np.stack([right, np.cross(forward, right), forward])
        matrix[:3, 3] = -matrix[:3, :3] @ (self.centre - self.distance * forward)
        return matrix


def render(
    source: Annotated[Path, typer.Argument(help=".ply, .compressed.ply, .splat or .spz")],
    out: Annotated[Path, typer.Option("-o", "--out", help="folder for pictures 0000.png and on; or one .png or .gif")],
    views: Annotated[Path | None, typer.Option(help="render these cameras: COLMAP folder or transforms.json")] = None,
    frames: Annotated[int, typer.Option(help="pictures of a turn around the scene, without --views", min=1)] = 24,
    width: Annotated[int, typer.Option(help="pixels, without --views", min=1, max=65536)] = 800,
    height: Annotated[int, typer.Option(help="pixels, without --views", min=1, max=65536)] = 600,
    downscale: Annotated[int, typer.Option(help="of the sides of the photographs of --views", min=1)] = 1,
) -> None:
    """Renders Gaussians from the cameras of a data set, or around the scene."""
    import rich.progress
    from PIL import Image

    from ..scenes import load_scene

    try:
        gaussians = formats.read(source)
        if views is not None:
            cameras = [
                (
                    v.viewmat,
                    v.K / np.array([[downscale], [downscale], [1]]),
                    v.width // downscale,
                    v.height // downscale,
                )
                for v in load_scene(views).views
            ]
        else:
            orbit = Orbit.around(gaussians)
            K = np.array(
                [[1.2 * max(width, height), 0, width / 2], [0, 1.2 * max(width, height), height / 2], [0, 0, 1]]
            )
            cameras = [(orbit.viewmat(i / frames), K, width, height) for i in range(frames)]
    except (OSError, ValueError, ModuleNotFoundError) as e:
        raise SystemExit(f"core: {e}") from None
    single = out.suffix.lower() in (".png", ".gif")
    if out.suffix.lower() == ".png":
        cameras = cameras[:1]
    pictures = []
    for i, (viewmat, K, w, h) in enumerate(rich.progress.track(cameras, "render", transient=True)):
        picture = Image.fromarray(render_gaussians(gaussians, viewmat, K, w, h))
        if single:
            pictures.append(picture)
            continue
        with files.replace(out / f"{i:04}.png") as temporary:
            picture.save(temporary)
    if single:
        with files.replace(out) as temporary:
            more = {"save_all": True, "append_images": pictures[1:], "duration": 80, "loop": 0}
            pictures[0].save(temporary, **(more if out.suffix.lower() == ".gif" else {}))
    print(f"{len(cameras)} pictures of {len(gaussians):,} Gaussians in {out}")


def view(
    source: Annotated[Path, typer.Argument(help=".ply, .compressed.ply, .splat or .spz")],
    port: Annotated[int, typer.Option(help="of the web page", min=1, max=65535)] = 8080,
    host: Annotated[str, typer.Option(help="address to listen at")] = "127.0.0.1",
) -> None:
    """Shows Gaussians in the browser (needs the extra `view`: viser); Ctrl-C ends it."""
    import time

    try:
        import viser
    except ImportError:
        raise SystemExit("core: splatting.view needs the package 'viser': install core-splatting[view]") from None
    try:
        g = formats.read(source)
    except (OSError, ValueError, ModuleNotFoundError) as e:
        raise SystemExit(f"core: {e}") from None
    server = viser.ViserServer(host=host, port=port)
    server.scene.set_up_direction("-y")
    server.scene.add_gaussian_splats(
        "/gaussians",
        centers=g.means,
        covariances=covariances(g),
        rgbs=g.colors.clip(0, 1),
        opacities=g.opacities[:, None],
    )
    try:
        while True:
            time.sleep(1)
    except KeyboardInterrupt:
        server.stop()


def covariances(g: formats.Gaussians) -> NDArray[np.float32]:
    """(N, 3, 3) covariances, world units squared."""
    w, x, y, z = (g.quats / np.linalg.norm(g.quats, axis=1, keepdims=True).clip(1e-30)).T
    rows = (
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    )  # fmt: skip
    axes = np.stack(rows, -1).reshape(-1, 3, 3) * g.scales[:, None]
    out: NDArray[np.float32] = axes @ axes.transpose(0, 2, 1)
    return out
