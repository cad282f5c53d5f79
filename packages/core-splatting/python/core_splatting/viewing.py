"""Jobs that show: `core run splatting.render`, `splatting.view`; neither needs torch."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from core_registry import files
from numpy.typing import NDArray

from . import formats
from .formats.container4d import open_4d
from .playback import Player
from .rasterize import rasterization


def render_gaussians(
    shown: formats.Gaussians | Player,
    viewmat: NDArray[Any],
    K: NDArray[Any],
    width: int,
    height: int,
    time: float = 0.0,
) -> NDArray[np.uint8]:
    """The (H, W, 3) picture of one camera on black, of 4D Gaussians at a time."""
    viewmats, Ks = (np.ascontiguousarray(m, np.float32)[None] for m in (viewmat, K))
    if isinstance(shown, Player):
        image = shown.render(time, viewmats, Ks, width, height)
    else:
        g = shown
        image, _, _ = rasterization(
            g.means, g.quats, g.scales, g.opacities, g.sh, viewmats, Ks, width, height, sh_degree=g.sh_degree
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
    def around(means: NDArray[Any]) -> Orbit:
        """Around the middle of most centres (N, 3), as far as nine in ten of them need."""
        finite = means[np.isfinite(means).all(1)].astype(np.float64)
        if not len(finite):
            raise ValueError("there is no Gaussian with a finite centre")
        centre = np.quantile(finite, [0.1, 0.9], 0).mean(0)
        return Orbit(centre, 3.2 * float(np.quantile(np.linalg.norm(finite - centre, axis=1), 0.9)) + 1e-6)

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


def _opened(source: Path) -> formats.Gaussians | Player:
    """Gaussians of any format, ready to be shown; SystemExit with a sentence if it cannot be read."""
    try:
        return Player(open_4d(source).read()) if source.suffix.lower() == ".4dgs" else formats.read(source)
    except (OSError, ValueError, ModuleNotFoundError) as e:
        raise SystemExit(f"core: {e}") from None


def _cameras(
    shown: formats.Gaussians | Player, views: Path | None, frames: int, width: int, height: int, downscale: int
) -> list[tuple[NDArray[Any], NDArray[Any], int, int, float]]:
    """viewmat, K, width, height and time of each picture."""
    from .scenes import load_scene

    if views is not None:
        smaller = np.array([[downscale], [downscale], [1]])
        return [
            (v.viewmat, v.K / smaller, v.width // downscale, v.height // downscale, v.time)
            for v in load_scene(views).views
        ]
    orbit = Orbit.around(shown.means[:, :3])
    focal = 1.2 * max(width, height)
    K = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    duration = shown.duration if isinstance(shown, Player) else 0.0
    return [(orbit.viewmat(i / frames), K, width, height, duration * i / max(frames - 1, 1)) for i in range(frames)]


def render(
    source: Annotated[Path, typer.Argument(help=".ply, .compressed.ply, .splat or .spz; .4dgs of 4D Gaussians")],
    out: Annotated[Path, typer.Option("-o", "--out", help="folder for pictures 0000.png and on; or one .png or .gif")],
    views: Annotated[Path | None, typer.Option(help="render these cameras: COLMAP folder or transforms.json")] = None,
    frames: Annotated[int, typer.Option(help="pictures of a turn around the scene, without --views", min=1)] = 24,
    width: Annotated[int, typer.Option(help="pixels, without --views", min=1, max=65536)] = 800,
    height: Annotated[int, typer.Option(help="pixels, without --views", min=1, max=65536)] = 600,
    downscale: Annotated[int, typer.Option(help="of the sides of the photographs of --views", min=1)] = 1,
) -> None:
    """Renders Gaussians from the cameras of a data set, or around the scene while its time goes by."""
    import rich.progress
    from PIL import Image

    shown = _opened(source)
    try:
        cameras = _cameras(shown, views, frames, width, height, downscale)
    except (OSError, ValueError) as e:
        raise SystemExit(f"core: {e}") from None
    single = out.suffix.lower() in (".png", ".gif")
    if out.suffix.lower() == ".png":
        cameras = cameras[:1]
    pictures = []
    for i, (viewmat, K, w, h, time) in enumerate(rich.progress.track(cameras, "render", transient=True)):
        picture = Image.fromarray(render_gaussians(shown, viewmat, K, w, h, time))
        if single:
            pictures.append(picture)
            continue
        with files.replace(out / f"{i:04}.png") as temporary:
            picture.save(temporary)
    if single:
        with files.replace(out) as temporary:
            more = {"save_all": True, "append_images": pictures[1:], "duration": 80, "loop": 0}
            pictures[0].save(temporary, **(more if out.suffix.lower() == ".gif" else {}))
    print(f"{len(cameras)} pictures of {len(shown):,} Gaussians in {out}")


def view(
    source: Annotated[Path, typer.Argument(help=".ply, .compressed.ply, .splat or .spz; .4dgs of 4D Gaussians")],
    port: Annotated[int, typer.Option(help="of the web page", min=1, max=65535)] = 8080,
    host: Annotated[str, typer.Option(help="address to listen at")] = "127.0.0.1",
) -> None:
    """Shows Gaussians in the browser, 4D ones with a slider for their time (needs the extra `view`: viser); Ctrl-C ends
    it."""
    import time

    server = serve(_opened(source), host, port)
    try:
        while True:
            time.sleep(1)
    except KeyboardInterrupt:
        server.stop()


def serve(shown: formats.Gaussians | Player, host: str, port: int) -> Any:
    """A running viser server that shows Gaussians."""
    try:
        import viser
    except ImportError:
        raise SystemExit("core: splatting.view needs the package 'viser': install core-splatting[view]") from None
    server = viser.ViserServer(host=host, port=port)
    server.scene.set_up_direction("-y")

    def show(time: float) -> None:
        if isinstance(shown, Player):
            centres, covars, colors, opacities = shown.at(time)
        else:
            centres, covars, colors, opacities = shown.means, covariances(shown), shown.colors, shown.opacities
        server.scene.add_gaussian_splats(
            "/gaussians", centers=centres, covariances=covars, rgbs=colors.clip(0, 1), opacities=opacities[:, None]
        )

    show(0.0)
    if isinstance(shown, Player):
        slider = server.gui.add_slider("time", 0.0, shown.duration, shown.duration / 200, 0.0)
        slider.on_update(lambda _: show(slider.value))
    return server


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
