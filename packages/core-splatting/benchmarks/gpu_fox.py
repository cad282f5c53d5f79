"""GPU benchmark: the trainer on photographs beside gsplat's operators and its DefaultStrategy in the same loop.

python benchmarks/gpu_fox.py SCENE [-o FILE.json] [--steps 7000] [--downscale 2]

SCENE is a COLMAP model or a transforms.json, e.g. `fox` of instant-ngp (18 MB, non-commercial licence, not in this
repository). gsplat's own trainer is not in its wheel; `GsplatTrainer` has its recipe: gsplat.rasterization with
packed=False, torch.optim.Adam for each parameter, DefaultStrategy with its defaults. Pictures, their order, loss,
learning rates, degree of the harmonics and evaluation are the same for both, and each is rendered by its own
rasteriser. Time is that of the steps with what they wait for, without loading. Each way runs first for 200 steps to
warm up, then whole.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import time
from typing import Any

import torch
from core_registry.timing import write_results
from core_splatting.scenes import load_scene
from core_splatting.ssim import ssim
from core_splatting.training import Config, Trainer

COLUMNS = ("what", "steps", "seconds", "gaussians", "psnr", "ssim")


class GsplatTrainer(Trainer):
    """The same loop over gsplat's operators, strategy and torch's Adam."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        from gsplat import DefaultStrategy

        renamed = {"log_scales": "scales", "logit_opacities": "opacities"}
        rates = {g["name"]: g["lr"] for g in self.model.optimizer.param_groups if g["name"] != "sh"}
        rates |= {"sh0": self.config.lr_sh0, "shN": self.config.lr_shn}
        values = {renamed.get(n, n): p.detach().clone() for n, p in self.model.parameters.items()}
        sh = values.pop("sh")
        values |= {"sh0": sh[:, :1].clone(), "shN": sh[:, 1:].clone()}
        self.params = torch.nn.ParameterDict({n: torch.nn.Parameter(v) for n, v in values.items()})
        self.optimizers = {
            renamed.get(n, n): torch.optim.Adam([self.params[renamed.get(n, n)]], lr=lr, eps=1e-15, fused=True)
            for n, lr in rates.items()
        }
        c = self.config
        self.densify = DefaultStrategy(
            prune_opa=c.prune_opacity, grow_grad2d=c.grow_gradient, grow_scale3d=c.grow_scale,
            prune_scale3d=c.prune_scale, refine_start_iter=c.refine_start, refine_stop_iter=c.refine_stop,
            reset_every=c.reset_every, refine_every=c.refine_every, verbose=False,
        )  # fmt: skip
        self.densify.check_sanity(self.params, self.optimizers)
        self.densify_state = self.densify.initialize_state(scene_scale=self.extent)

    def render(self, picture: Any, background: Any = None, meta: bool = False) -> tuple[torch.Tensor, Any]:
        """gsplat's rendering."""
        from gsplat import rasterization

        p, (height, width) = self.params, picture.pixels.shape[:2]
        image, _, information = rasterization(
            p["means"], p["quats"], torch.exp(p["scales"]), torch.sigmoid(p["opacities"]),
            torch.cat([p["sh0"], p["shN"]], 1), picture.viewmat[None], picture.K[None], width, height,
            sh_degree=min(self.step // self.config.sh_every, self.config.sh_degree), packed=False,
        )  # fmt: skip
        return image[0], information

    def _train_step(self) -> torch.Tensor:
        c = self.config
        self.optimizers["means"].param_groups[0]["lr"] = c.lr_means * self.extent * 0.01 ** (self.step / c.steps)
        picture = self._next_picture()
        image, information = self.render(picture)
        target = picture.pixels.float() / 255
        self.densify.step_pre_backward(self.params, self.optimizers, self.densify_state, self.step, information)
        similarity = ssim(image.permute(2, 0, 1)[None], target.permute(2, 0, 1)[None]).mean()
        loss = (1 - c.ssim_weight) * (image - target).abs().mean() + c.ssim_weight * (1 - similarity)
        loss.backward()
        for optimizer in self.optimizers.values():
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.densify.step_post_backward(
            self.params, self.optimizers, self.densify_state, self.step, information, packed=False
        )
        self.step += 1
        return loss.detach()

    def count(self) -> int:
        """The number of Gaussians."""
        return len(self.params["means"])


def measure(kind: type[Trainer], name: str, scene: Any, config: Config, downscale: int) -> dict[str, Any]:
    """One row of the table."""
    for _ in kind(scene, config, downscale=downscale, device="cuda").run(200):
        pass
    trainer = kind(scene, config, downscale=downscale, device="cuda")
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in trainer.run(config.steps):
        pass
    torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    count = trainer.count() if isinstance(trainer, GsplatTrainer) else len(trainer.model)
    return {"what": name, "steps": config.steps, "seconds": seconds, "gaussians": count} | trainer.evaluate()


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene", type=pathlib.Path)
    parser.add_argument("-o", "--out", type=pathlib.Path)
    parser.add_argument("--steps", type=int, default=7000)
    parser.add_argument("--downscale", type=int, default=2)
    chosen = parser.parse_args()
    scene, config = load_scene(chosen.scene), Config.for_steps(chosen.steps)
    rows = [measure(Trainer, "ours", scene, config, chosen.downscale)]
    print(json.dumps(rows[-1]), flush=True)
    try:
        import gsplat
    except ImportError:
        print("gsplat is not installed")
    else:
        rows.append(measure(GsplatTrainer, f"gsplat {gsplat.__version__}", scene, config, chosen.downscale))
        print(json.dumps(rows[-1]), flush=True)
    if chosen.out:
        write_results(chosen.out, COLUMNS, rows)


if __name__ == "__main__":
    main()
