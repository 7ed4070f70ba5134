# SPDX-License-Identifier: Apache-2.0
"""Collection of training imagery: licences respected, duplicates dropped, sources recorded."""

import csv
import io
import shutil

import cv2
import numpy as np
import pytest
from PIL import Image

from daflow_ros.training import imagery
from daflow_ros.training.imagery import ImagerySource

COPYRIGHT = '''Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: pictures

Files: *
Copyright: 2020 Ada
           2021 Grace
License: CC-BY-SA-4.0

Files: photos/closed.jpg
 other/*
Copyright: Eve
License: CC-BY-NC-4.0
 No commercial use.

License: CC-BY-SA-4.0
 Text.
'''


def photograph(height, width, seed):
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width, 3), np.float32)
    for cells in (4, 12, 40):
        image += cv2.resize(rng.random((cells, cells, 3)).astype(np.float32), (width, height),
                            interpolation=cv2.INTER_CUBIC) / 3
    return Image.fromarray((image.clip(0, 1) * 255).astype(np.uint8))


@pytest.fixture
def package(tmp_path):
    """A scratch folder that holds an unpacked package, so nothing is downloaded."""
    folder = tmp_path / 'scratch' / 'pictures'
    pictures = folder / 'usr/share/backgrounds/photos'
    pictures.mkdir(parents=True)
    documents = folder / 'usr/share/doc/pictures'
    documents.mkdir(parents=True)
    (documents / 'copyright').write_text(COPYRIGHT)
    (folder / 'VERSION').write_text('1.2-3')
    photograph(900, 1200, 0).save(pictures / 'open.jpg')
    photograph(900, 1200, 0).resize((600, 450)).save(pictures / 'open_small.jpg')
    photograph(900, 1200, 1).save(pictures / 'closed.jpg')
    photograph(300, 400, 2).save(pictures / 'second.png')
    Image.new('RGB', (600, 600), 'navy').save(pictures / 'plain.png')
    (pictures / 'broken.png').write_bytes(b'\x89PNG\r\n\x1a\n and no more')
    sprite = photograph(400, 400, 3).convert('RGBA')
    mask = np.zeros((400, 400), np.uint8)
    cv2.circle(mask, (200, 200), 120, 255, -1)
    sprite.putalpha(Image.fromarray(mask))
    sprite.save(pictures / 'ball.png')
    blob = io.BytesIO()
    photograph(320, 420, 4).save(blob, 'WEBP', quality=90)
    (pictures / 'bundle.rcc').write_bytes(b'qres\0\0junk' + blob.getvalue() + b'more junk')
    return tmp_path


def collect(folder, **options):
    lines = []
    counts = imagery.collect(folder / 'out', folder / 'scratch',
                             (ImagerySource('pictures', 'photos', **options),), lines.append)
    with open(folder / 'out' / 'sources.csv', newline='', encoding='utf-8') as table:
        return counts, list(csv.DictReader(table)), '\n'.join(lines)


def test_collects_by_licence_and_content(package):
    counts, rows, report = collect(package)
    assert counts == {'photos': 3, 'sprites': 1, 'textures': 0}
    names = {row['path_in_package'].split('/')[-1] for row in rows}
    # closed.jpg is non-commercial, open_small.jpg a duplicate, plain.png has no detail.
    assert names == {'open.jpg', 'second.png', 'ball.png', 'bundle.rcc#10'}
    assert 'broken.png' in report and '1 duplicates, 1 without a licence' in report
    for row in rows:
        assert (row['package'], row['version']) == ('pictures', '1.2-3')
        assert row['licence'] == 'CC-BY-SA-4.0' and row['author'] == '2020 Ada 2021 Grace'
    files = {row['path_in_package'].split('/')[-1]: package / 'out' / row['file'] for row in rows}
    assert Image.open(files['open.jpg']).size == (1024, 768)
    assert Image.open(files['second.png']).size == (400, 300)  # never enlarged
    ball = Image.open(files['ball.png'])
    assert ball.mode == 'RGBA' and abs(ball.width - 241) <= 2  # cropped to what is opaque


def test_file_without_any_licence_is_left_out(package):
    (package / 'scratch/pictures/usr/share/doc/pictures/copyright').write_text('see upstream')
    counts, rows, _ = collect(package)
    assert sum(counts.values()) == 0 and rows == []
    assert sum(collect(package, licence='GPL-2+')[0].values()) > 0


def test_include_exclude_and_limit(package):
    assert collect(package, include=r'second')[0]['photos'] == 1
    shutil.rmtree(package / 'out')
    assert collect(package, exclude=r'second|bundle')[0]['photos'] == 1


def test_missing_package_is_an_error(tmp_path):
    if shutil.which('apt-get') is None:
        pytest.skip('needs apt-get')
    source = ImagerySource('daflow-no-such-package', 'photos')
    with pytest.raises(imagery.ImageryError, match='no package'):
        imagery.collect(tmp_path / 'out', tmp_path / 'scratch', (source,), lambda line: None)


def test_benchmark_images_are_not_collected():
    source = next(s for s in imagery.SOURCES if s.package == 'python3-skimage')
    assert 'motorcycle' in source.exclude  # Middlebury's stereo pair
