# SPDX-License-Identifier: Apache-2.0
"""Evaluation against independent figures, repeatability, resumption, damaged sources."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from test_falling import scene, snow

from daflow_ros.cli import main
from daflow_ros.datasets.benchmarks import GroundTruth
from daflow_ros.estimators import load_estimator
from daflow_ros.evaluation import measures, proxies, runner, summary
from daflow_ros.evaluation.corruptions import CLEAN, Corruption, corrupt_clip, parse_corruptions
from daflow_ros.evaluation.models import parse_models
from daflow_ros.evaluation.sources import CLIP_FRAMES, open_source

PAIRS = Path(__file__).resolve().parents[2] / 'shared' / 'pairs'


def texture(seed, height=100, width=260):
    noise = np.random.default_rng(seed).random((height, width, 3)).astype(np.float32)
    blurred = cv2.GaussianBlur(noise, (0, 0), 2.5)
    return cv2.normalize(blurred, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


def chairs(root, count=4):
    """FlyingChairs of textures that shift by whole pixels: the truth is known."""
    (root / 'data').mkdir(parents=True)
    for i in range(1, count + 1):
        wide, shift = texture(i), 2 * i
        stem = root / 'data' / f'{i:05d}'
        cv2.imwrite(f'{stem}_img1.ppm', wide[10:90, 50:178])
        cv2.imwrite(f'{stem}_img2.ppm', wide[10:90, 50 - shift:178 - shift])
        flow = np.zeros((80, 128, 2), np.float32)
        flow[..., 0] = shift
        cv2.writeOpticalFlow(f'{stem}_flow.flo', flow)
    return root


def frames(root, count):
    root.mkdir(parents=True)
    wide = texture(9, width=128 + 2 * count)
    for i in range(count):
        cv2.imwrite(str(root / f'{i:04d}.png'), wide[10:74, 2 * i:2 * i + 96])
    return root


def evaluate(*words):
    return main(['evaluate', *map(str, words), '--no-report'])


def results(folder):
    return json.loads((folder / 'results.json').read_text())


def without_times(value):
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k != 'timing'}
    return [without_times(v) for v in value] if isinstance(value, list) else value


@pytest.mark.skipif(not PAIRS.is_dir(), reason='needs ../shared')
def test_reproduces_the_ten_line_script(tmp_path):
    script = Path(__file__).with_name('ten_line_epe.py')
    output = subprocess.run(
        [sys.executable, script, PAIRS], capture_output=True, text=True, check=True
    ).stdout
    expected = {name: float(value) for name, value in map(str.split, output.splitlines())}
    assert evaluate(PAIRS, '--models', 'dis,farneback', '-o', tmp_path) == 0
    clean = results(tmp_path)['summary']['pairs']['clean']
    assert set(expected) == {'dis', 'farneback'}
    for name, value in expected.items():
        assert clean[name]['epe'] == pytest.approx(value, rel=0.02)
        assert clean[name]['pairs'] == 10


def test_two_runs_are_the_same_but_for_times(tmp_path):
    chairs(tmp_path / 'chairs', 2)
    frames(tmp_path / 'frames', 4)
    contents = []
    for _ in range(2):
        shutil.rmtree(tmp_path / 'out', ignore_errors=True)
        assert evaluate(
            tmp_path / 'chairs', tmp_path / 'frames', '--models', 'dis,farneback', '--corrupt',
            'rain:3,severe:2+4', '--proxies', '-o', tmp_path / 'out',
        ) == 0
        contents.append(results(tmp_path / 'out'))
    first, second = map(without_times, contents)
    assert first == second and len(first['records']) == (2 + 3) * 2 * 4
    assert contents[0] != contents[1], 'times should differ: is the second run the first?'
    record = first['records'][-1]
    assert record['proxies'].keys() == set(proxies.PROXIES) and 'accuracy' not in record


def test_goes_on_from_what_is_there(tmp_path, capsys):
    chairs(tmp_path / 'chairs', 2)
    words = [tmp_path / 'chairs', '-o', tmp_path / 'out', '--models']
    evaluate(*words, 'dis', '--corrupt', 'rain:3')
    before = {(r['pair'], r['corruption']): r for r in results(tmp_path / 'out')['records']}
    evaluate(*words, 'dis,farneback', '--corrupt', 'rain:3,severe:3')
    after = [r for r in results(tmp_path / 'out')['records'] if r['model'] == 'dis']
    kept = [r for r in after if r['corruption'] != 'severe']
    # The very times are the same: nothing was estimated twice.
    assert len(kept) == 4 and all(before[r['pair'], r['corruption']] == r for r in kept)
    assert all('drift' in r['proxies'] for r in after if r['corruption'] == 'severe')
    evaluate(*words, 'farneback', '--proxies')
    with_proxies = results(tmp_path / 'out')['records']
    evaluate(*words, 'farneback')
    assert results(tmp_path / 'out')['records'] == with_proxies
    evaluate(*words, 'dis', '--seed', '7', '--corrupt', 'rain:3')
    other = [r for r in results(tmp_path / 'out')['records'] if r['corruption'] == 'rain']
    assert all(before[r['pair'], 'rain']['accuracy'] != r['accuracy'] for r in other)


@pytest.mark.parametrize('change', ['code', 'opencv'])
def test_nothing_outlives_the_code_that_made_it(tmp_path, monkeypatch, change):
    chairs(tmp_path / 'chairs', 1)
    words = [tmp_path / 'chairs', '-o', tmp_path / 'out', '--models', 'dis_fast']
    evaluate(*words)
    [before] = results(tmp_path / 'out')['records']
    if change == 'code':
        monkeypatch.setattr(runner, 'code_revision', lambda: 'another')
    else:
        # Not cv2's own: that is the revision of dis_fast, which counts anyway.
        monkeypatch.setattr(runner, 'cv2', SimpleNamespace(__version__='another'))
    evaluate(*words)
    [after] = results(tmp_path / 'out')['records']
    # Its time tells that the pair was estimated anew.
    assert before['accuracy'] == after['accuracy'] and before['timing'] != after['timing']


@pytest.mark.parametrize('floor', ['degradation', 'flow', 'models', 'estimators'])
def test_every_source_counts(tmp_path, floor):
    package = tmp_path / 'daflow_ros'
    shutil.copytree(runner.PACKAGE, package, ignore=shutil.ignore_patterns('weights', '*.pyc'))
    before = runner.code_revision(package)
    assert before == runner.code_revision()
    with sorted((package / floor).glob('*.py'))[-1].open('a') as file:
        file.write('# changed\n')
    assert before != runner.code_revision(package)


def test_damaged_files_and_sources_are_named_and_the_rest_goes_on(tmp_path, capsys):
    chairs(tmp_path / 'chairs', 4)
    broken = tmp_path / 'chairs' / 'data' / '00002_flow.flo'
    broken.write_bytes(broken.read_bytes()[:100])
    (tmp_path / 'broken.mcap').write_bytes(b'no bag at all' * 50)
    frames(tmp_path / 'frames', 3)
    status = evaluate(
        tmp_path / 'chairs', tmp_path / 'missing', tmp_path / 'broken.mcap', tmp_path / 'frames',
        '--models', 'dis', '-o', tmp_path / 'out',
    )
    content, errors = results(tmp_path / 'out'), capsys.readouterr().err
    assert status == 0
    assert {r['pair'] for r in content['records'] if r['source'] == 'chairs'} == {
        '00001', '00003', '00004'}
    assert sum(r['source'] == 'frames' for r in content['records']) == 2
    assert set(content['run']['failed']) == {
        str(tmp_path / 'missing'), str(tmp_path / 'broken.mcap')}
    for name in ('00002_flow.flo', 'missing', 'broken.mcap'):
        assert name in errors
    assert evaluate(tmp_path / 'missing', '--models', 'dis', '-o', tmp_path / 'o2') == 2
    capsys.readouterr()
    assert evaluate(tmp_path / 'chairs', '--models', 'dis', '-o', tmp_path / 'broken.mcap') == 2
    assert '--output' in capsys.readouterr().err


def test_truth_of_a_shift_is_found(tmp_path):
    chairs(tmp_path / 'chairs', 3)
    evaluate(tmp_path / 'chairs', '--models', 'dis', '-o', tmp_path / 'out')
    clean = results(tmp_path / 'out')['summary']['chairs']['clean']['dis']
    assert clean['epe'] < 1 and clean['mean_flow'] == pytest.approx(4, abs=0.5)


def test_limits_set_the_exit_status(tmp_path, capsys):
    chairs(tmp_path / 'chairs', 2)
    words = [tmp_path / 'chairs', '--models', 'dis,farneback', '-o', tmp_path / 'out',
             '--corrupt', 'severe:5', '--require']
    assert evaluate(*words, 'epe<1000,dis/outlier3<=100') == 0
    assert 'ok   dis: epe' in capsys.readouterr().out
    assert evaluate(*words, 'epe[clean]<3,epe[severe:5]<0.001') == 1
    assert 'FAIL farneback [severe:5]: epe' in capsys.readouterr().out
    for nonsense in ('epe', 'speed<3', 'raft/epe<3', 'epe[fog:3]<2', 'ause<1', 'epe<-'):
        assert evaluate(*words, nonsense) == 2


def test_every_pair_of_a_recording_once(tmp_path):
    count = 2 * CLIP_FRAMES + 3
    source = open_source(frames(tmp_path / 'frames', count))
    clips = list(source.clips())
    assert [len(clip.frames) for clip in clips] == [CLIP_FRAMES, CLIP_FRAMES, 5]
    names = [name for clip in clips for name in clip.pairs]
    assert names == [f'frame_{i:06d}' for i in range(count - 1)]
    assert np.array_equal(clips[0].frames[-1], clips[1].frames[0])
    assert len(list(open_source(tmp_path / 'frames', limit=20).clips())[1].pairs) == 5
    every = [clip.pairs for clip in open_source(tmp_path / 'frames', every=10).clips()]
    assert every == [('frame_000000', 'frame_000010', 'frame_000020')]


def test_same_pixels_for_all_and_again(tmp_path):
    [clip] = open_source(frames(tmp_path / 'frames', 3)).clips()
    rain = Corruption('rain', 3.0)
    a, b = (corrupt_clip(clip.frames, clip.name, rain, 0) for _ in range(2))
    assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
    other = corrupt_clip(clip.frames, clip.name, rain, 1)
    assert not np.array_equal(a[0], other[0]) and not np.array_equal(a[0], clip.frames[0])
    assert corrupt_clip(clip.frames, clip.name, CLEAN, 0) is clip.frames


def test_names_on_the_command_line():
    chosen = [c.label for c in parse_corruptions('rain:2+4, fog,clean,rain:2')]
    assert chosen == ['clean', 'rain:2', 'rain:4', 'fog:3']
    for wrong in ('drizzle:2', 'rain:9', 'rain:x'):
        with pytest.raises(ValueError, match=wrong.partition(':')[0]):
            parse_corruptions(wrong)
    labels = [s.label for s in parse_models('dis,raft@a/things.pth,raft@b/kitti.pth')]
    assert labels == ['dis', 'raft@things', 'raft@kitti']
    with pytest.raises(ValueError, match='unknown model'):
        parse_models('nothing')


def test_regions_against_a_loop():
    rng = np.random.default_rng(4)
    flow = np.zeros((30, 40, 2), np.float32)
    flow[:, 20:] = 15, 5
    flow[3, 4] = 90, 0
    valid = rng.random((30, 40)) > 0.1
    flow[~valid] = np.nan
    prediction = (np.nan_to_num(flow) + rng.normal(0, 2, flow.shape)).astype(np.float32)
    occluded = rng.random((30, 40)) > 0.7
    truth = GroundTruth(flow, valid, occluded)
    measured = measures.accuracy(prediction, truth, measures.region_masks(truth))

    sides = ((0, 1), (1, 0), (0, -1), (-1, 0))
    boundary = [
        (y, x) for y in range(30) for x in range(40) for dy, dx in sides
        if valid[y, x] and 0 <= y + dy < 30 and 0 <= x + dx < 40 and valid[y + dy, x + dx]
        and math.dist(flow[y, x], flow[y + dy, x + dx]) > 1
    ]
    sums = {}
    for y in range(30):
        for x in range(40):
            if not valid[y, x]:
                continue
            error = math.dist(flow[y, x], prediction[y, x])
            speed = math.hypot(*flow[y, x])
            distance = min(math.dist((y, x), edge) for edge in boundary)
            if abs(distance - 10) < 0.3:  # OpenCV's distances are approximate
                distance = None
            names = ['s0-10' if speed < 10 else 's10-40' if speed < 40 else 's40+',
                     'occluded' if occluded[y, x] else 'visible']
            names += [] if distance is None else ['d0-10' if distance < 10 else 'd10-60']
            for name in names:
                total = sums.setdefault(name, [0.0, 0])
                total[0] += error
                total[1] += 1
    for name in ('s0-10', 's10-40', 's40+', 'occluded', 'visible'):
        assert measured['splits'][name][1] == sums[name][1]
        assert measured['splits'][name][0] == pytest.approx(sums[name][0], rel=1e-4)
    for name in ('d0-10', 'd10-60'):
        assert measured['splits'][name][1] == pytest.approx(sums[name][1], abs=60)
        assert measured['splits'][name][1] >= sums[name][1]


def test_proxies_of_known_fields():
    wide = texture(3)
    image1, image2 = wide[:80, 50:178], wide[:80, 44:172]
    right = np.zeros((80, 128, 2), np.float32)
    right[..., 0] = 6
    good = proxies.proxies(image1, image2, right, -right)
    assert good['fb_error'] < 1e-5 and good['fb_inconsistent'] == 0
    assert good['photometric'] < 1e-4 and good['smoothness'] == 0
    zero = proxies.proxies(image1, image2, np.zeros_like(right), np.zeros_like(right))
    assert zero['photometric'] > 10 and zero['fb_error'] == 0
    one_way = proxies.consistency(right, np.zeros_like(right))
    assert one_way['fb_error'] == pytest.approx(6) and one_way['fb_inconsistent'] == 100
    assert proxies.drift(right, np.zeros_like(right)) == pytest.approx(6)
    step = np.zeros_like(right)
    step[:, 64:] = 4
    flat = np.zeros((80, 128, 3), np.uint8)
    edge = flat.copy()
    edge[:, 64:] = 255
    # 80 steps of 8 px among 80 * 127 + 79 * 128 differences; at an image edge all but forgiven.
    expected = 80 * 8 / (80 * 127 + 79 * 128)
    assert proxies.smoothness(flat, step) == pytest.approx(expected, rel=1e-4)
    assert proxies.smoothness(edge, step) == pytest.approx(expected * math.exp(-10), rel=1e-3)


def test_rank_correlation():
    rng = np.random.default_rng(6)
    a = rng.random(50)
    assert proxies.rank_correlation(a, np.exp(a)) == pytest.approx(1)
    assert proxies.rank_correlation(a, -a**3) == pytest.approx(-1)
    # Spearman without ties: 1 - 6 sum d^2 / n (n^2 - 1).
    x, y = np.array([1, 2, 3, 4, 5.0]), np.array([3, 1, 2, 5, 4.0])
    assert proxies.rank_correlation(x, y) == pytest.approx(1 - 6 * (4 + 1 + 1 + 1 + 1) / 120)
    assert math.isnan(proxies.rank_correlation(x, np.ones(5)))
    stats = pytest.importorskip('scipy.stats')
    b, c = rng.integers(0, 6, 60), rng.integers(0, 6, 60)
    assert proxies.rank_correlation(b, c) == pytest.approx(stats.spearmanr(b, c).statistic)


def test_correlations_find_the_good_proxy():
    rng = np.random.default_rng(8)
    records = [
        {'source': 's', 'pair': p, 'corruption': 'rain', 'severity': level, 'model': model,
         'accuracy': {'epe': epe}, 'mean_flow': 1, 'timing': {'ms': 1, 'peak_mb': None},
         'proxies': {'fb_error': epe**2, 'smoothness': -epe, 'photometric': rng.random()}}
        for p in 'abcdef' for level in (1, 2, 3) for model in 'xyz'
        for epe in [float(rng.random())]
    ]
    rows = {row['proxy']: row for row in summary.proxy_correlations(records)}
    for column in ('frames', 'models', 'conditions'):
        assert rows['fb_error'][column] == pytest.approx(1)
        assert rows['smoothness'][column] == pytest.approx(-1)
        assert abs(rows['photometric'][column]) < 0.6
    assert 'drift' not in rows


@pytest.mark.parametrize(('kind', 'passes'), [('moving', True), ('noise', False)])
def test_the_acceptance_example_can_fail(tmp_path, kind, passes):
    example = Path(__file__).resolve().parents[1] / 'docs' / 'examples' / 'test_flow_on_bag.py'
    bag = frames(tmp_path / 'frames', 4)
    if kind == 'noise':
        for i in range(4):
            noise = np.random.default_rng(i).integers(0, 255, (64, 96, 3), dtype=np.uint8)
            cv2.imwrite(str(bag / f'{i:04d}.png'), noise)
    done = subprocess.run(
        [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', str(example)],
        capture_output=True, text=True, env={**os.environ, 'DAFLOW_TEST_BAG': str(bag)},
    )
    assert ('1 passed' if passes else '1 failed') in done.stdout, done.stdout


def test_confidence_is_measured_and_drawn(tmp_path):
    import torch

    from daflow_ros.models.raft import RAFT
    from daflow_ros.models.raft_sizes import RAFT_TINY

    torch.manual_seed(0)
    RAFT(**RAFT_TINY).save_pretrained(tmp_path / 'random')
    words = ['evaluate', chairs(tmp_path / 'chairs', 1), '--models',
             f'raft_tiny@{tmp_path / "random"},dis', '-o', tmp_path / 'out']
    assert main([str(word) for word in words]) == 0
    content = results(tmp_path / 'out')
    tiny, dis = content['records']
    quality = tiny['confidence']
    assert 'confidence' not in dis and 0 <= tiny['mean_confidence'] <= 1
    assert quality['oracle'][0] == quality['sparsification'][0] == 1
    assert all(c >= o - 1e-9 for c, o in zip(quality['sparsification'], quality['oracle'],
                                             strict=True))
    html = (tmp_path / 'out' / 'report.html').read_text()
    assert 'sparsification curves' in html and 'confidence, 0 to 1' in html
    # The better of the two is told, and by how much the other is worse is in the table.
    assert 'Run dis' in html


def test_iterations_are_asked_for_as_a_node_does(tmp_path):
    """Fewer than the model's own: snow is then not taken away by a second look either."""
    clear, flow = scene()
    fallen = snow(clear, flakes=160)
    (tmp_path / 'data').mkdir()
    stem = tmp_path / 'data' / '00001'
    for index, image in enumerate(fallen, 1):
        cv2.imwrite(f'{stem}_img{index}.ppm', image[..., ::-1])
    cv2.writeOpticalFlow(f'{stem}_flow.flo', flow)
    words = ['--models', 'raft_tiny', '--device', 'cpu', '--iterations', 1]
    assert evaluate(tmp_path, *words, '-o', tmp_path / 'out') == 0
    [stored] = (tmp_path / 'out' / 'runs').glob('*/raft_tiny.json')
    [record] = json.loads(stored.read_text())['corruptions']['clean']
    expected = [
        load_estimator('raft_tiny', device='cpu', iterations=own).estimate(*fallen, iterations=1)
        for own in (2, 1)
    ]
    errors = [float(np.linalg.norm(e.flow - flow, axis=-1).mean()) for e in expected]
    assert abs(errors[0] - errors[1]) > 0.01
    assert record['accuracy']['epe'] == pytest.approx(errors[0], abs=1e-3)
