"""Few steps of a distilled flow over the latent sets of pybullet's objects against many guided ones of its teacher.

python benchmarks/check_flow_distillation.py [-o FILE] [--runs DIR] [--seeds N]; needs pybullet's meshes and trimesh,
some minutes of a CPU. Held-out boxes as conditions, the same noise for all ways: the error is the distance from the
teacher's 50 guided steps over their length, the overlap that of the decoded volumes with theirs. Goes on with what is
in --runs.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from core_diffusion.claims import flashvdm
from core_diffusion.claims.seeds import spread
from core_diffusion.flow_distillation import sample_flow
from core_diffusion.latent_flow import LatentTransformer, encode_latents
from core_diffusion.meshes import shape_set
from core_diffusion.shape_recipes import box_sides, fit_flow, fit_student
from core_diffusion.vecset import VecSetVAE
from core_diffusion.volume_decoding import decode_volume
from core_registry.timing import write_results
from safetensors.torch import load_file, save_file
from torch import Tensor

GUIDANCE, POINTS, NOISES, SIDE = 2.0, 50, 4, 32
TEACHER_STEPS, STAGE_STEPS = 1000, 300
COLUMNS = ["what", "calls", "error", "spread of error", "overlap", "spread of overlap"]
AUTOENCODER = flashvdm.Size(
    60,
    6,
    1024,
    {"latent_channels": 8, "width": 64, "heads": 2, "layers": 1, "mlp_ratio": 1},
    (
        flashvdm.Stage(
            32, 1024, {"steps": 200, "batch_size": 8, "learning_rate": 2e-3, "ema_decay": 0.98, "save_every": 50}
        ),
    ),
    SIDE,
    None,
    False,
    1,
    (),
)


def prepared(runs: Path) -> tuple[VecSetVAE, dict[str, Tensor]]:
    """The autoencoder, and "x" and "condition" of its training shapes, the boxes' "sides" of the others, "scale"."""
    setting, points, file = AUTOENCODER, runs / "points.safetensors", runs / "data.safetensors"
    if not points.exists():
        runs.mkdir(parents=True, exist_ok=True)
        paths, generator = flashvdm.mesh_files()[: setting.meshes], torch.Generator().manual_seed(0)
        save_file(shape_set(paths, setting.rows, torch.device("cpu"), generator)[1], points)
    if not file.exists():
        rows = load_file(points)
        parts = {name: value[setting.held_out :] for name, value in rows.items()}
        vae, told = flashvdm.train(setting, parts, 0, runs / "autoencoder")
        print(told, flush=True)
        latents, scale = encode_latents(vae, parts["surface"])
        sides = box_sides(rows["surface"])
        held_out, others = sides[: setting.held_out].clone(), sides[setting.held_out :].clone()
        save_file({"x": latents, "condition": others, "sides": held_out, "scale": torch.tensor(scale)}, file)
    return VecSetVAE.from_pretrained(runs / "autoencoder" / "stage-0" / "model").eval(), load_file(file)


def insides(vae: VecSetVAE, latents: Tensor) -> Tensor:
    """bool [N, ...]: the volumes of latent sets."""
    fields = vae.geo_decoder.field(vae.decode(latents))
    found = decode_volume(fields, SIDE, batch=len(latents), hierarchical=False, device=latents.device)
    return torch.stack([volume.inside() for volume in found])


def averaged(folder: Path, teacher: LatentTransformer) -> LatentTransformer:
    """The student of a stage, by the checkpoint of its trainer."""
    state = load_file(folder / "training.safetensors")
    model = LatentTransformer.from_config(teacher.config)
    parts = {name.removeprefix("ema.").removeprefix("student."): t for name, t in state.items() if name[:4] == "ema."}
    model.load_state_dict({name: t for name, t in parts.items() if not name.startswith("critic.")})
    return model.eval()


@torch.no_grad()
def compare(
    vae: VecSetVAE, teacher: LatentTransformer, runs: Path, sides: Tensor, seed: int
) -> dict[str, tuple[int, float, float]]:
    """(calls of the network, error, overlap) of each way."""
    shape = (len(sides), vae.config.num_latents, vae.config.latent_channels)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))

    def taught(steps: int) -> Tensor:
        return sample_flow(teacher, noise, sides, steps, POINTS, guidance=GUIDANCE, null=0)

    want = taught(POINTS)
    volumes = insides(vae, want * teacher.config.latent_scale)
    ways = {f"teacher, {steps} guided steps": (2 * steps, taught(steps)) for steps in (25, 10, 5)}
    for stage in ("guidance", "consistency", "adversarial"):
        student = averaged(runs / stage, teacher)
        for steps in (POINTS, 5) if stage == "guidance" else (5,):
            ways[f"student after {stage}, {steps} steps"] = steps, sample_flow(student, noise, sides, steps, POINTS)
    found = {}
    for name, (calls, latents) in ways.items():
        error = (latents - want).flatten(1).norm(dim=1) / want.flatten(1).norm(dim=1)
        ours = insides(vae, latents * teacher.config.latent_scale)
        found[name] = calls, float(error.mean()), flashvdm.iou(ours, volumes)
    return found


def main() -> None:
    """Trains what is not trained yet, prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--out", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("out/flow-distillation"))
    parser.add_argument("--seeds", type=int, default=3)
    chosen = parser.parse_args()
    vae, data = prepared(chosen.runs)
    sides, scale = data.pop("sides").repeat(NOISES, 1), float(data.pop("scale"))
    every: dict[str, list[tuple[int, float, float]]] = {}
    for seed in range(chosen.seeds):
        runs = chosen.runs / f"seed-{seed}"
        teacher = fit_flow(data, scale, runs / "teacher", "cpu", TEACHER_STEPS, seed)
        fit_student(data, teacher.eval(), runs, "cpu", STAGE_STEPS, seed, GUIDANCE)
        for name, row in compare(vae, teacher, runs, sides, seed).items():
            every.setdefault(name, []).append(row)
            print(seed, name, row, flush=True)
    table = []
    for name, found in every.items():
        calls, errors, overlaps = zip(*found, strict=True)
        (error, error_spread), (overlap, overlap_spread) = spread(errors), spread(overlaps)
        values = [name, calls[0], error, error_spread, overlap, overlap_spread]
        table.append(dict(zip(COLUMNS, values, strict=True)))
        print(table[-1])
    if chosen.out:
        write_results(chosen.out, COLUMNS, table, cpu=True, seeds=chosen.seeds, shapes=len(data["x"]))


if __name__ == "__main__":
    main()
