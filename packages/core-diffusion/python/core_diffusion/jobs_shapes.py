"""Job of shapes: `core run diffusion.decode-shape`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def decode_shape(
    model: Annotated[Path, typer.Argument(help="Folder of a VecSetVAE (save_pretrained)")],
    shape: Annotated[Path, typer.Argument(help="Mesh to encode, or .safetensors with 'latents' [M, C]")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Mesh to write: .glb, .ply, .obj or .stl")],
    resolution: Annotated[int, typer.Option(help="Cells along each axis", min=1, max=2048)] = 256,
    keys: Annotated[int | None, typer.Option(help="Keys that points of a cell see; all if absent", min=1)] = None,
    picture: Annotated[Path | None, typer.Option(help="Picture of the mesh to write")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the points drawn from a mesh")] = 0,
) -> None:
    """Decode a vecset shape into a mesh, level by level (2503.16302).

    A mesh is encoded first, from 4096 points of its surface.
    """
    import torch
    from rich.console import Console
    from safetensors.torch import load_file

    from .meshes import draw_meshes, load_mesh, sample_surface, save_mesh
    from .vecset import VecSetVAE
    from .volume_decoding import decode_volume

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    vae = VecSetVAE.from_pretrained(model).to(device).eval()
    with torch.no_grad(), Console(stderr=True).status("decoding"):
        if shape.suffix == ".safetensors":
            stored = load_file(shape)
            wanted = (vae.config.num_latents, vae.config.latent_channels)
            if "latents" not in stored or stored["latents"].shape != wanted:
                raise ValueError(f"{shape} must hold 'latents' of shape {wanted}")
            z = stored["latents"].float()[None].to(device)
        else:
            vertices, faces = (torch.from_numpy(x) for x in load_mesh(shape))
            cloud = torch.cat(sample_surface(vertices, faces, 4096, torch.Generator().manual_seed(seed)), 1)
            z = vae.encode(cloud[None].to(device))[0]
        field = vae.geo_decoder.field(vae.decode(z), keys)
        (volume,) = decode_volume(field, resolution, device=device)
        found, triangles = volume.mesh()
    if len(triangles) == 0:
        raise ValueError(f"{shape}: the decoded volume is empty")
    save_mesh(output, found, triangles)
    if picture is not None:
        draw_meshes(picture, [(f"{shape.name}, {resolution} cells a side", found, triangles)], columns=1)
