#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Render pairs of images of 3D scenes with their exact flow: the second source of training clips.

Blender's Cycles draws them on a CPU, some 3 s a pair of 384 px and core. It comes from PyPI as
``bpy``, for one Python version and an old NumPy, so it wants an environment of its own::

    python3.11 -m venv blender && blender/bin/pip install 'bpy==4.5.*' opencv-python-headless
    blender/bin/python tools/render_scenes.py IMAGERY_DIR PAIRS_DIR --count 1000 --seed 1
    daflow clips --rendered PAIRS_DIR CLIPS_DIR

Scenes are of three kinds: things that tumble before a backdrop, a landscape that the camera moves
through, and a room. Surfaces are the photographs, and cut-outs the sprites, of `daflow imagery`;
one sun, shadows, no noise. Each pair is a file ``SEED_NUMBER.npz``: ``frames`` uint8
(2, H, W, 3), ``flow`` float32 (2, H, W, 2) px, forth and back, x to the right and y down.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import sys
import tempfile
from pathlib import Path

import bpy
import cv2
import numpy as np
from mathutils import Euler, Vector, noise

#: Largest motion of camera and things as a share of what the view spans, scene after scene.
REACHES = (0.02, 0.04, 0.07, 0.11)
SHAPES = ('cube', 'cube', 'sphere', 'cylinder', 'cone', 'torus', 'monkey', 'rock', 'rock')
SKIES = (
    (1.0, 1.0, 1.0), (0.8, 0.85, 0.95), (0.35, 0.55, 0.95), (0.5, 0.5, 0.5), (0.03, 0.03, 0.05),
)  # fmt: skip
#: Pairs a process draws: Blender keeps some memory of every scene.
PAIRS_A_PROCESS = 60


class Surfaces:
    """Materials of photographs and sprites, as fine as is seen: Cycles filters no textures."""

    def __init__(self, imagery: Path, scratch: Path) -> None:
        self.photographs = sorted((imagery / 'photos').iterdir())
        self.sprites = sorted((imagery / 'sprites').glob('*.png'))
        self.scratch = scratch

    def _image(self, path: Path, pixels: float) -> bpy.types.Image:
        """The picture with its shorter side (a sprite's longer) reduced to about ``pixels``."""
        side = max(64, round(2 ** (math.ceil(2 * math.log2(1.1 * pixels)) / 2)))
        small = self.scratch / f'{side}_{path.name}'
        if not small.exists():
            image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            scale = side / (max if path in self.sprites else min)(image.shape[:2])
            if scale >= 0.95:
                return bpy.data.images.load(str(path), check_existing=True)
            size = [max(4, round(n * scale)) for n in image.shape[1::-1]]
            cv2.imwrite(str(small), cv2.resize(image, size, interpolation=cv2.INTER_AREA))
        return bpy.data.images.load(str(small), check_existing=True)

    def plain(self, colour: tuple[float, float, float], ambient: float) -> bpy.types.Material:
        """A surface without texture."""
        material, diffuse, glow = self._lit(ambient)
        diffuse.inputs['Color'].default_value = (*colour, 1)
        glow.inputs['Color'].default_value = (*colour, 1)
        return material

    def photograph(
        self, rng: random.Random, ambient: float, repeat: float, pixels: float
    ) -> bpy.types.Material:
        """One photograph, ``repeat`` times over the surface, which is ``pixels`` wide."""
        material, *shaders = self._lit(ambient)
        add, link = material.node_tree.nodes.new, material.node_tree.links.new
        texture = add('ShaderNodeTexImage')
        texture.image = self._image(rng.choice(self.photographs), pixels / repeat)
        texture.extension = 'MIRROR'
        mapping = add('ShaderNodeMapping')
        mapping.inputs['Scale'].default_value = (repeat, repeat, 1)
        mapping.inputs['Location'].default_value = (rng.random(), rng.random(), 0)
        mapping.inputs['Rotation'].default_value = (0, 0, rng.choice((0, 0, rng.uniform(0, 6.3))))
        link(add('ShaderNodeTexCoord').outputs['UV'], mapping.inputs[0])
        link(mapping.outputs[0], texture.inputs[0])
        self._recolour(material, rng, texture, shaders)
        return material

    def sprite(
        self, rng: random.Random, ambient: float, pixels: float
    ) -> tuple[bpy.types.Material, float]:
        """A cut-out, its longer side ``pixels`` wide, and its width over its height."""
        material, *shaders = self._lit(ambient)
        add, link = material.node_tree.nodes.new, material.node_tree.links.new
        texture = add('ShaderNodeTexImage')
        texture.image = self._image(rng.choice(self.sprites), pixels)
        texture.extension = 'CLIP'
        self._recolour(material, rng, texture, shaders)
        output = next(n for n in material.node_tree.nodes if n.type == 'OUTPUT_MATERIAL')
        solid = output.inputs[0].links[0].from_socket
        mix = add('ShaderNodeMixShader')
        link(texture.outputs['Alpha'], mix.inputs[0])
        link(add('ShaderNodeBsdfTransparent').outputs[0], mix.inputs[1])
        link(solid, mix.inputs[2])
        link(mix.outputs[0], output.inputs[0])
        width, height = texture.image.size
        return material, width / height

    @staticmethod
    def _lit(ambient: float) -> tuple[bpy.types.Material, bpy.types.Node, bpy.types.Node]:
        material = bpy.data.materials.new('surface')
        # It shines by itself, so that nothing is black, but lights nothing else: no noise.
        material.cycles.emission_sampling = 'NONE'
        material.use_nodes = True
        material.node_tree.nodes.clear()
        add, link = material.node_tree.nodes.new, material.node_tree.links.new
        diffuse, glow = add('ShaderNodeBsdfDiffuse'), add('ShaderNodeEmission')
        glow.inputs['Strength'].default_value = ambient
        both = add('ShaderNodeAddShader')
        link(diffuse.outputs[0], both.inputs[0])
        link(glow.outputs[0], both.inputs[1])
        link(both.outputs[0], add('ShaderNodeOutputMaterial').inputs[0])
        return material, diffuse, glow

    @staticmethod
    def _recolour(
        material: bpy.types.Material,
        rng: random.Random,
        texture: bpy.types.Node,
        shaders: list[bpy.types.Node],
    ) -> None:
        colour = material.node_tree.nodes.new('ShaderNodeHueSaturation')
        colour.inputs['Hue'].default_value = rng.choice((0.5, 0.5, rng.random()))
        colour.inputs['Saturation'].default_value = rng.uniform(0.5, 1.2)
        colour.inputs['Value'].default_value = rng.uniform(0.5, 1.3)
        material.node_tree.links.new(texture.outputs['Color'], colour.inputs['Color'])
        for shader in shaders:
            material.node_tree.links.new(colour.outputs[0], shader.inputs['Color'])


def log_uniform(rng: random.Random, low: float, high: float) -> float:
    """Heavy-tailed: as many draws between 1 and 2 as between 10 and 20."""
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def gauss(rng: random.Random, *deviations: float) -> Vector:
    """A normal vector."""
    return Vector([rng.gauss(0, deviation) for deviation in deviations])


def placed(shape: str, material: bpy.types.Material, rng: random.Random) -> bpy.types.Object:
    """A shape about the origin, some 2 units wide."""
    mesh = bpy.ops.mesh
    if shape == 'cube':
        mesh.primitive_cube_add()
    elif shape == 'sphere':
        mesh.primitive_uv_sphere_add(segments=32, ring_count=16)
    elif shape == 'cylinder':
        mesh.primitive_cylinder_add(vertices=32)
    elif shape == 'cone':
        mesh.primitive_cone_add(vertices=24)
    elif shape == 'torus':
        mesh.primitive_torus_add(
            minor_radius=rng.uniform(0.1, 0.4), minor_segments=16, major_segments=32
        )
    elif shape == 'monkey':
        mesh.primitive_monkey_add()
    elif shape == 'rock':
        mesh.primitive_ico_sphere_add(subdivisions=4)
    elif shape == 'ground':
        mesh.primitive_grid_add(x_subdivisions=100, y_subdivisions=100)
    else:
        mesh.primitive_plane_add()
    thing = bpy.context.active_object
    if shape == 'rock':
        rough, grain = rng.uniform(0.1, 0.6), rng.uniform(0.6, 2.5)
        where = Vector([rng.uniform(0, 99)] * 3)
        for vertex in thing.data.vertices:
            vertex.co *= 1 + rough * noise.noise(vertex.co * grain + where)
    if shape in ('sphere', 'cylinder', 'torus', 'monkey', 'rock'):
        for polygon in thing.data.polygons:
            polygon.use_smooth = True
    thing.data.materials.append(material)
    # Seen by the camera and casting shadows, but lighting nothing: no noise.
    thing.visible_diffuse = thing.visible_glossy = False
    return thing


def thing(
    surfaces: Surfaces, rng: random.Random, ambient: float, pixels: float, cut_out: bool
) -> bpy.types.Object:
    """Anything that may lie about or move, some 2 units and ``pixels`` wide."""
    if cut_out:
        material, aspect = surfaces.sprite(rng, ambient, pixels)
        flat = placed('plane', material, rng)
        flat.scale = (min(1, aspect), min(1, 1 / aspect), 1)
        flat.rotation_euler = (math.pi / 2, 0, 0)
        return flat
    if rng.random() < 0.12:
        colour = tuple(rng.random() ** 1.5 for _ in range(3))
        material = surfaces.plain(colour, ambient)
    else:
        material = surfaces.photograph(rng, ambient, rng.uniform(0.5, 2), 1.5 * pixels)
    solid = placed(rng.choice(SHAPES), material, rng)
    solid.rotation_euler = [rng.uniform(0, 2 * math.pi) for _ in range(3)]
    solid.scale = [math.exp(rng.gauss(0, 0.35)) for _ in range(3)]
    return solid


def moved(body: bpy.types.Object, place: Vector, travel: Vector, turn: Vector) -> None:
    """Keys at the frames 1 to 3: there, away, and there again.

    Cycles knows exactly where a point was in the frame before, and only roughly where it will be
    in the next: frame 2 gives the flow back, frame 3 the flow forth.
    """
    start = Vector(body.rotation_euler)
    for frame, share in ((1, 0), (2, 1), (3, 0)):
        body.location = place + share * travel
        body.rotation_euler = Euler(start + share * turn)
        body.keyframe_insert('location', frame=frame)
        body.keyframe_insert('rotation_euler', frame=frame)


class SceneBuilder:
    """One random scene in the open file of Blender, and the camera's motion through it."""

    def __init__(self, surfaces: Surfaces, rng: random.Random, size: int, reach: float) -> None:
        self.surfaces, self.rng, self.size, self.reach = surfaces, rng, size, reach
        self.ambient = rng.uniform(0.25, 1)
        lens = bpy.data.cameras.new('camera')
        lens.angle, lens.clip_end = rng.uniform(0.6, 1.4), 2000
        self.camera = bpy.data.objects.new('camera', lens)
        light = bpy.data.lights.new('sun', 'SUN')
        light.energy, light.angle = rng.uniform(0.5, 3.5), 0
        self.sun = bpy.data.objects.new('sun', light)
        self.sun.rotation_euler = (rng.uniform(-1.2, 1.2), rng.uniform(-1.2, 1.2), 0)
        for body in (self.camera, self.sun):
            bpy.context.collection.objects.link(body)
        bpy.context.scene.camera = self.camera
        self._sky()
        kind = rng.choice((self._flying, self._flying, self._outdoors, self._outdoors, self._room))
        at, towards, near = kind()
        self._travel(at, towards, near)

    def _span(self, distance: float) -> float:
        """Half of what the view is wide at a distance."""
        return distance * math.tan(self.camera.data.angle / 2)

    def _sky(self) -> None:
        # Of a background Cycles gives no motion; a far sphere has the right one.
        rng = self.rng
        if rng.random() < 0.6:
            material = self.surfaces.plain(rng.choice(SKIES), 1.0)
        else:
            material = self.surfaces.photograph(rng, 1.0, rng.uniform(1, 4), 8 * self.size)
        dome = placed('sphere', material, rng)
        dome.scale = (900, 900, 900)
        dome.visible_shadow = False

    def _photograph(self, repeat: float, pixels: float) -> bpy.types.Material:
        return self.surfaces.photograph(self.rng, self.ambient, repeat, pixels)

    def _flying(self) -> tuple[Vector, Vector, float]:
        rng, reach = self.rng, self.reach
        depth = rng.uniform(8, 20)
        if rng.random() < 0.8:
            wall = placed('plane', self._photograph(rng.uniform(0.5, 1.5), 2 * self.size), rng)
            wall.location, wall.rotation_euler = (0, depth, 0), (math.pi / 2, 0, 0)
            wall.scale = [2 * self._span(depth)] * 3
        for _ in range(int(log_uniform(rng, 2, 24))):
            y = rng.uniform(3, 0.9 * depth)
            span, share = self._span(y), log_uniform(rng, 0.06, 0.55)
            cut_out = rng.random() < 0.35
            body = thing(self.surfaces, rng, self.ambient, self.size * share, cut_out)
            body.scale = [n * span * share for n in body.scale]
            travel, turn = Vector(), Vector()
            if rng.random() < 0.75:
                way = gauss(rng, 1, 0.6, 1).normalized()
                travel = way * 2 * span * log_uniform(rng, 0.002, reach)
            if rng.random() < 0.7:
                amount = log_uniform(rng, 0.002, 1.2 * reach) * (0.3 if cut_out else 1)
                turn = gauss(rng, 1, 1, 1) * amount
            place = Vector((rng.uniform(-span, span), y, rng.uniform(-span, span)))
            moved(body, place, travel, turn)
        return Vector(), Vector((0, 1, 0)), 3.0

    def _outdoors(self) -> tuple[Vector, Vector, float]:
        rng, reach = self.rng, self.reach
        ground = placed('ground', self._photograph(log_uniform(rng, 6, 60), 6 * self.size), rng)
        rise = rng.choice((0, 0, rng.uniform(0, 1.5)))
        where = Vector([rng.uniform(0, 99)] * 3)
        for vertex in ground.data.vertices:
            vertex.co.z = rise * noise.noise(12 * vertex.co + where)
        ground.scale = (150, 150, 1)
        for _ in range(int(log_uniform(rng, 2, 30))):
            y = log_uniform(rng, 3, 60)
            span, high = self._span(y), log_uniform(rng, 0.3, 2.5)
            cut_out = rng.random() < 0.5
            body = thing(self.surfaces, rng, self.ambient, self.size * high / span, cut_out)
            if not cut_out and rng.random() < 0.5:
                body.rotation_euler = (0, 0, rng.uniform(0, 2 * math.pi))
                high *= 2
            body.scale = [n * high for n in body.scale]
            up = body.scale[1] if cut_out else 0.7 * high
            travel, turn = Vector(), Vector()
            if rng.random() < 0.4:
                travel = gauss(rng, 1, 1, 0) * log_uniform(rng, 0.005, 4 * reach)
                turn = gauss(rng, 0, 0, 0.4 * reach) if rng.random() < 0.4 else turn
            moved(body, Vector((rng.uniform(-span, span), y, up)), travel, turn)
        high = log_uniform(rng, 0.4, 3)
        at = Vector((0, 0, high + rise))
        return at, at + Vector((0, 1, rng.gauss(-0.05, 0.15))), 1.2 * high + 0.4

    def _room(self) -> tuple[Vector, Vector, float]:
        rng, reach = self.rng, self.reach
        half, quarter_turn = rng.uniform(4, 10), math.pi / 2
        self.sun.data.use_shadow = False
        walls = (
            ((0, 0, -half / 2), (0, 0, 0)),
            ((0, 0, half / 2), (math.pi, 0, 0)),
            ((0, half, 0), (quarter_turn, 0, 0)),
            ((-0.8 * half, 0, 0), (quarter_turn, 0, quarter_turn)),
            ((0.8 * half, 0, 0), (quarter_turn, 0, quarter_turn)),
        )
        for place, angles in walls:
            if rng.random() < 0.3:
                material = self.surfaces.plain((log_uniform(rng, 0.1, 1),) * 3, self.ambient)
            else:
                material = self._photograph(rng.uniform(0.7, 4), 3 * self.size)
            wall = placed('plane', material, rng)
            wall.location, wall.rotation_euler, wall.scale = place, angles, [half] * 3
        for _ in range(int(log_uniform(rng, 2, 18))):
            wide = half * log_uniform(rng, 0.03, 0.16)
            pixels = self.size * wide / self._span(half)
            body = thing(self.surfaces, rng, self.ambient, pixels, rng.random() < 0.25)
            body.scale = [n * wide for n in body.scale]
            travel, turn = Vector(), Vector()
            if rng.random() < 0.4:
                travel = gauss(rng, 1, 1, 1) * 0.3 * half * log_uniform(rng, 0.01, reach)
                turn = gauss(rng, 1, 1, 1) * log_uniform(rng, 0.002, reach)
            x, y = rng.uniform(-0.7, 0.7) * half, rng.uniform(0, 0.95) * half
            moved(body, Vector((x, y, rng.uniform(-0.5, 0.3) * half + wide)), travel, turn)
        at = Vector((rng.uniform(-0.3, 0.3), -rng.uniform(0, 0.6), rng.uniform(-0.2, 0.3))) * half
        towards = Vector((rng.uniform(-0.4, 0.4), 0.7, rng.uniform(-0.4, 0.1))) * half
        return at, towards, 0.6 * half

    def _travel(self, at: Vector, towards: Vector, near: float) -> None:
        """The camera moves by a share of the distance ``near`` of what is close; or rests."""
        rng, reach = self.rng, self.reach
        awake = float(rng.random() > 0.1)
        way = gauss(rng, 0.5, 1, 0.25).normalized()
        travel = awake * way * near * log_uniform(rng, 0.01, 2.5 * reach)
        amount = 0.7 * self.camera.data.angle * log_uniform(rng, 0.0005, reach)
        turn = awake * amount * gauss(rng, 0.6, 0.5, 1)
        self.camera.rotation_euler = (towards - at).to_track_quat('-Z', 'Y').to_euler()
        self.camera.rotation_euler[1] += rng.gauss(0, 0.1)
        moved(self.camera, at, travel, turn)


def prepare(size: int, seed: int, scratch: Path) -> None:
    """An empty scene; images and motion vectors go to ``scratch``."""
    bpy.ops.wm.read_factory_settings(use_empty=True)
    scene = bpy.context.scene
    scene.render.engine = 'CYCLES'
    scene.render.resolution_x = scene.render.resolution_y = size
    scene.render.image_settings.file_format = 'PNG'
    scene.render.image_settings.color_mode = 'RGB'
    scene.view_settings.view_transform = 'Standard'
    scene.view_layers[0].use_pass_vector = True
    cycles = scene.cycles
    cycles.samples, cycles.seed, cycles.transparent_max_bounces = 4, seed % 2**31, 4
    cycles.max_bounces = cycles.diffuse_bounces = cycles.glossy_bounces = 0
    cycles.use_adaptive_sampling = cycles.use_denoising = False
    cycles.use_auto_tile = cycles.use_light_tree = False
    scene.use_nodes = True
    nodes, link = scene.node_tree.nodes, scene.node_tree.links.new
    nodes.clear()
    layers, vectors = nodes.new('CompositorNodeRLayers'), nodes.new('CompositorNodeOutputFile')
    vectors.base_path, vectors.file_slots[0].path = str(scratch), 'vectors'
    vectors.format.file_format, vectors.format.color_depth = 'OPEN_EXR', '32'
    vectors.format.color_mode = 'RGBA'
    link(layers.outputs['Image'], nodes.new('CompositorNodeComposite').inputs['Image'])
    link(layers.outputs['Vector'], vectors.inputs[0])


def pixels(path: Path, size: int) -> np.ndarray:
    """``(size, size, 4)`` of an image file, as stored."""
    image = bpy.data.images.load(str(path))
    image.colorspace_settings.name = 'Non-Color'
    values = np.empty(size * size * 4, np.float32)
    image.pixels.foreach_get(values)
    bpy.data.images.remove(image)
    path.unlink()
    return values.reshape(size, size, 4)[::-1]


def rendered(size: int, scratch: Path) -> tuple[np.ndarray, np.ndarray]:
    """Frames and flow of the scene at hand, as the file has them."""
    scene = bpy.context.scene
    frames, flow = [], []
    for frame in (3, 2):
        scene.frame_set(frame)
        scene.render.filepath = str(scratch / 'frame.png')
        bpy.ops.render.render(write_still=True)
        frames.append((pixels(scratch / 'frame.png', size)[..., :3] * 255).round())
        before = pixels(scratch / f'vectors{frame:04d}.exr', size)[..., :2]
        flow.append(before * np.array([1, -1], np.float32))
    return np.stack(frames).astype(np.uint8), np.stack(flow)


def main() -> None:
    """Draw the pairs that are missing."""
    parser = argparse.ArgumentParser(description='Render training pairs.')
    parser.add_argument('imagery', type=Path, help='folder of `daflow imagery`')
    parser.add_argument('output', type=Path)
    parser.add_argument('--count', type=int, default=1000, help='(default: %(default)s)')
    parser.add_argument('--size', type=int, default=384, help='px (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=1, help='one for each process')
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    missing = [
        (number, path)
        for number in range(args.count)
        if not (path := args.output / f'{args.seed:03d}_{number:05d}.npz').exists()
    ]
    with tempfile.TemporaryDirectory() as folder:
        surfaces = Surfaces(args.imagery, Path(folder))
        for number, path in missing[:PAIRS_A_PROCESS]:
            seed = args.seed * 1_000_003 + number
            prepare(args.size, seed, Path(folder))
            reach = REACHES[number % len(REACHES)]
            SceneBuilder(surfaces, random.Random(seed), args.size, reach)
            frames, flow = rendered(args.size, Path(folder))
            part = path.with_suffix('.part')
            with part.open('wb') as file:
                np.savez(file, frames=frames, flow=flow)
            os.replace(part, path)
            print(f'{path}: mean flow {np.hypot(*flow[0].T).mean():.1f} px', file=sys.stderr)
    if len(missing) > PAIRS_A_PROCESS:
        os.execv(sys.executable, [sys.executable, *sys.argv])  # noqa: S606


if __name__ == '__main__':
    main()
