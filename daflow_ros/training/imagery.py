# SPDX-License-Identifier: Apache-2.0
"""Photographs, sprites and textures for the training scenes, from Debian packages.

Everything comes from Debian `main`, whose packages may be used, modified and redistributed for
any purpose; files whose `debian/copyright` paragraph names a non-commercial or no-derivatives
licence are left out. Packages are downloaded and unpacked into a scratch folder, never
installed. `sources.csv` records package, version, licence and copyright holder of each image,
which is what the model card cites.
"""

from __future__ import annotations

import csv
import fnmatch
import gzip
import io
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile

PHOTO_SHORT_SIDE = 768
TEXTURE_SHORT_SIDE = 512
SPRITE_LONG_SIDE = 384
_SUFFIXES = {'.jpg', '.jpeg', '.png', '.webp'}
_REFUSED_LICENCE = re.compile(r'-N[CD]\b|non-?commercial|no-?derivat', re.IGNORECASE)


class ImageryError(RuntimeError):
    """A package could not be downloaded or unpacked."""


@dataclass(frozen=True)
class ImagerySource:
    """One Debian package and which of its files are taken.

    kind: 'photos' or 'textures'; images with transparency go to 'sprites' whatever the kind.
    include, exclude: regular expressions on the path inside the package.
    licence: used where `debian/copyright` has no paragraph for the file.
    limit: at most so many files, evenly spread over the sorted list.
    """

    package: str
    kind: str
    include: str = ''
    exclude: str = r'$^'
    licence: str = ''
    minimum_side: int = 256
    limit: int | None = None


# Middlebury's motorcycle pair in scikit-image is a stereo benchmark: never trained on.
SOURCES = (
    ImagerySource('lomiri-wallpapers', 'photos'),
    ImagerySource('lomiri-wallpapers-16.04', 'photos'),
    ImagerySource('lomiri-wallpapers-20.04', 'photos'),
    ImagerySource('gnome-backgrounds', 'photos', licence='CC-BY-SA-3.0 / CC-BY-2.0'),
    ImagerySource('mate-backgrounds', 'photos'),
    ImagerySource('plasma-workspace-wallpapers', 'photos', exclude='screenshot'),
    ImagerySource('lxqt-themes', 'photos', include='wallpapers/'),
    ImagerySource('ukui-wallpapers', 'photos'),
    ImagerySource('budgie-core', 'photos', include='backgrounds/'),
    ImagerySource('xfdesktop4-data', 'photos', include='backgrounds/'),
    ImagerySource('desktop-base', 'photos', include='wallpaper|background'),
    ImagerySource('kphotoalbum', 'photos', include='/demo/', exclude='logo', licence='GPL-2+'),
    ImagerySource('palapeli-data', 'photos', include='/collection/'),
    ImagerySource('libjxl-testdata', 'photos', exclude='wide-gamut|pngsuite|dots|spline|patches'),
    ImagerySource('python3-skimage', 'photos', include='skimage/data/',
                  exclude='motorcycle|clock|logo|color|text|page|cell|ihc|retina'),
    ImagerySource('python3-sklearn', 'photos', include='datasets/images', licence='CC-BY-2.0'),
    ImagerySource('stellarium-data', 'photos', include='landscapes/'),
    ImagerySource('gcompris-qt-data', 'photos', include='/rcc/', minimum_side=240,
                  licence='CC-BY-SA, CC-BY, CC0, public domain, GPL-3+ (per file upstream)'),
    ImagerySource('supertuxkart-data', 'photos', include=r'screenshot[^/]*$'),
    ImagerySource('tuxpaint-stamps-default', 'photos', include='/stamps/', minimum_side=96),
    ImagerySource('supertuxkart-data', 'textures', include='/(textures|tracks|library|models)/',
                  exclude=r'normal|_nm\b|_n\.|gloss|mask|lightmap|screenshot|minimap|gui|particle|'
                          r'_data|karts|cubemap|heightmap'),
    ImagerySource('torcs-data', 'textures', include='/tracks/',
                  exclude='shadow|map|elv|logo|background'),
    ImagerySource('extremetuxracer-data', 'textures', exclude='elev|terrain.png|trees.png|fonts'),
    ImagerySource('neverball-data', 'textures', include='/(png|textures)/', exclude='shot-'),
    ImagerySource('openclipart-png', 'photos', minimum_side=160, limit=500,
                  exclude='flag|logo|text', licence='public domain (CC Public Domain Dedication)'),
)


def download_package(package: str, folder: Path) -> Path:
    """Download and unpack a Debian package; returns the folder it was unpacked into.

    Raises ImageryError where apt-get or dpkg fails.
    """
    unpacked = folder / package
    if unpacked.is_dir():
        return unpacked
    for tool in ('apt-get', 'dpkg'):
        if shutil.which(tool) is None:
            raise ImageryError(f'{tool} is needed to fetch imagery: run this on Debian or Ubuntu')
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        fetched = subprocess.run(['apt-get', 'download', '-q', package], cwd=scratch,
                                 capture_output=True, text=True)
        archives = list(Path(scratch).glob('*.deb'))
        if fetched.returncode or not archives:
            raise ImageryError(f'{package}: apt-get download failed: {fetched.stderr.strip()}')
        partial = Path(scratch) / 'unpacked'
        subprocess.run(['dpkg', '-x', str(archives[0]), str(partial)], check=True)
        version = archives[0].name.split('_')[1].replace('%3a', ':')
        (partial / 'VERSION').write_text(version)
        partial.rename(unpacked)
    return unpacked


def read_copyright(unpacked: Path) -> list[tuple[list[str], str, str]]:
    """(file patterns, licence, holders) paragraphs of a machine-readable debian/copyright."""
    paragraphs = []
    for path in sorted(unpacked.glob('usr/share/doc/*/copyright*')):
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == '.gz' else data).decode('utf-8', 'replace')
        for block in re.split(r'\n\s*\n', text):
            fields: dict[str, str] = {}
            for name, value in re.findall(r'^([A-Za-z-]+):[ \t]*((?:.*(?:\n[ \t].*)*))', block,
                                          re.MULTILINE):
                fields[name.lower()] = value
            if 'files' in fields and 'license' in fields:
                holders = ' '.join(fields.get('copyright', '').split())
                paragraphs.append((fields['files'].split(),
                                   fields['license'].splitlines()[0].strip(), holders))
    return paragraphs


def licence_of(path: str, paragraphs: list[tuple[list[str], str, str]]) -> tuple[str, str]:
    """Licence and holders of an installed file: the last paragraph that matches it.

    Installed paths differ from source paths, so a pattern matches by its trailing parts.
    """
    found = ('', '')
    for patterns, licence, holders in paragraphs:
        for pattern in patterns:
            if pattern == '*' or fnmatch.fnmatch(path, f'*/{pattern.lstrip("./")}') or (
                    '*' not in pattern and Path(path).name == Path(pattern).name):
                found = (licence, holders)
                break
    return found


def embedded_images(resource: Path) -> Iterator[tuple[str, bytes]]:
    """WebP images inside a Qt resource file, where they lie uncompressed."""
    data = resource.read_bytes()
    for match in re.finditer(b'RIFF....WEBPVP8', data, re.DOTALL):
        size = int.from_bytes(data[match.start() + 4:match.start() + 8], 'little') + 8
        yield f'{resource.name}#{match.start()}', data[match.start():match.start() + size]


def _members(unpacked: Path, source: ImagerySource) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """(path inside the package, reader) of the files a source selects, in stable order."""
    include, exclude = re.compile(source.include), re.compile(source.exclude, re.IGNORECASE)
    chosen: list[tuple[str, Callable[[], bytes]]] = []
    for path in sorted(unpacked.rglob('*')):
        name = path.relative_to(unpacked).as_posix()
        if not path.is_file() or path.is_symlink() or not include.search('/' + name):
            continue
        if exclude.search(name):
            continue
        if path.suffix.lower() in _SUFFIXES:
            chosen.append((name, path.read_bytes))
        elif path.suffix == '.rcc':
            chosen.extend((inner, lambda data=data: data)  # type: ignore[misc]
                          for inner, data in embedded_images(path))
    step = max(1, len(chosen) // source.limit) if source.limit else 1
    yield from chosen[::step]


def perceptual_hash(image: Image.Image) -> int:
    """256-bit difference hash: the sign of horizontal grey-value change on a 17x16 grid."""
    small = np.asarray(image.convert('RGB').convert('L').resize((17, 16), Image.Resampling.BOX),
                       dtype=np.int16)
    bits = (small[:, 1:] > small[:, :-1]).ravel()
    return int.from_bytes(np.packbits(bits).tobytes(), 'big')


def detail(image: Image.Image) -> float:
    """Mean absolute grey gradient, [0, 1], at 256 px: near 0 for plain colour gradients."""
    grey = image.convert('RGB').convert('L').resize((256, 256), Image.Resampling.BOX)
    values = np.asarray(grey, np.float32) / 255
    return float(np.abs(np.diff(values, axis=0)).mean() + np.abs(np.diff(values, axis=1)).mean())


def _is_normal_map(image: Image.Image) -> bool:
    red, green, blue = np.asarray(image.convert('RGB').resize((16, 16)), np.float32).mean((0, 1))
    return bool(blue > 200 and abs(red - 128) < 25 and abs(green - 128) < 25)


def _resized(image: Image.Image, factor: float) -> Image.Image:
    if factor >= 1:
        return image
    size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
    return image.resize(size, Image.Resampling.LANCZOS)


def classify(image: Image.Image, kind: str) -> tuple[str, Image.Image] | None:
    """Folder for an image and the image at training size; None where it has too little to see."""
    if image.mode in ('P', 'LA', 'PA') or 'transparency' in image.info:
        image = image.convert('RGBA')
    if image.mode.startswith('I'):  # 16 bit
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode == 'RGBA':
        alpha = np.asarray(image.getchannel('A'))
        if (alpha < 128).mean() > 0.02:
            box = image.getchannel('A').point(lambda a: 255 if a > 8 else 0).getbbox()
            if box is None or (alpha > 200).mean() < 0.05:
                return None
            image = image.crop(box)
            if min(image.size) < 48:
                return None
            return 'sprites', _resized(image, SPRITE_LONG_SIDE / max(image.size))
    image = image.convert('RGB')
    if detail(image) < 0.012 or _is_normal_map(image):
        return None
    if kind == 'photos' and min(image.size) >= 240:
        return 'photos', _resized(image, PHOTO_SHORT_SIDE / min(image.size))
    if min(image.size) < 128 or max(image.size) > 4 * min(image.size):
        return None
    return 'textures', _resized(image, TEXTURE_SHORT_SIDE / min(image.size))


def _described_author(unpacked: Path, name: str) -> tuple[str, str]:
    """Author and licence from a KDE wallpaper's metadata.json, where there is one."""
    for parent in list((unpacked / name).parents)[:4]:
        try:
            plugin = json.loads((parent / 'metadata.json').read_text())['KPlugin']
            authors = ', '.join(a.get('Name', '') for a in plugin.get('Authors', []))
            return authors, plugin.get('License', '')
        except (OSError, ValueError, KeyError, AttributeError):
            continue
    return '', ''


def collect(output: Path, scratch: Path, sources: tuple[ImagerySource, ...] = SOURCES,
            report: Callable[[str], None] = print) -> dict[str, int]:
    """Fetch the sources and write OUTPUT/{photos,sprites,textures} and OUTPUT/sources.csv.

    The same picture in several sizes is written once (hashes within 8 of 256 bits). Returns the
    number of images per folder. A package that cannot be fetched is reported and skipped;
    ImageryError where none could be.
    """
    Image.MAX_IMAGE_PIXELS = 200_000_000
    scratch.mkdir(parents=True, exist_ok=True)
    counts = {'photos': 0, 'sprites': 0, 'textures': 0}
    hashes: dict[str, list[int]] = {folder: [] for folder in counts}
    rows: list[tuple[str, ...]] = []
    fetched = 0
    for folder in counts:
        (output / folder).mkdir(parents=True, exist_ok=True)
    for source in sources:
        try:
            unpacked = download_package(source.package, scratch)
        except ImageryError as error:
            report(f'skipped {error}')
            continue
        fetched += 1
        version = (unpacked / 'VERSION').read_text()
        paragraphs = read_copyright(unpacked)
        kept = refused = duplicates = 0
        for name, read in _members(unpacked, source):
            licence, holders = licence_of(name, paragraphs)
            author, described = _described_author(unpacked, name)
            licence, holders = described or source.licence or licence, author or holders
            if not licence or _REFUSED_LICENCE.search(licence):
                refused += 1
                continue
            try:
                image: Image.Image = Image.open(io.BytesIO(read()))
                if min(image.size) < source.minimum_side and source.kind == 'photos':
                    continue
                if isinstance(image, ImageFile.ImageFile) and image.format == 'JPEG':
                    # Big photographs are decoded at reduced size.
                    image.draft('RGB', (2 * PHOTO_SHORT_SIDE, 2 * PHOTO_SHORT_SIDE))
                classified = classify(image, source.kind)
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                report(f'unreadable {source.package}: {name}: {error}')
                continue
            if classified is None:
                continue
            folder, image = classified
            key = perceptual_hash(image)
            if any((key ^ other).bit_count() <= 8 for other in hashes[folder]):
                duplicates += 1
                continue
            hashes[folder].append(key)
            counts[folder] += 1
            kept += 1
            suffix = '.png' if folder == 'sprites' else '.jpg'
            stem = re.sub(r'[^A-Za-z0-9]+', '_', Path(name).stem)[:40]
            file = f'{folder}/{source.package}_{counts[folder]:04d}_{stem}{suffix}'
            if folder == 'sprites':
                image.save(output / file)
            else:
                image.save(output / file, quality=95, subsampling=0)
            rows.append((file, source.package, version, licence, holders, name))
        report(f'{source.package} {version}: {kept} kept, {duplicates} duplicates, '
               f'{refused} without a licence that allows it')
    if not fetched:
        raise ImageryError('no package could be downloaded')
    with open(output / 'sources.csv', 'w', newline='', encoding='utf-8') as table:
        writer = csv.writer(table, lineterminator='\n')
        writer.writerow(('file', 'package', 'version', 'licence', 'author', 'path_in_package'))
        writer.writerows(rows)
    return counts
