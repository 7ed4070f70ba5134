# SPDX-License-Identifier: Apache-2.0
"""The report in a real browser: no console error, no request to anywhere."""

import re
import shutil
import socketserver
import subprocess
import threading
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

from daflow_ros.cli import main

CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which(
    'google-chrome'
)


@pytest.fixture(scope='module')
def report(tmp_path_factory):
    """Report on a small moving texture, in rain and without ground truth."""
    folder = tmp_path_factory.mktemp('report')
    (folder / 'frames <b>').mkdir()
    noise = np.random.default_rng(2).random((120, 160, 3)).astype(np.float32)
    texture = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 3), None, 0, 255, cv2.NORM_MINMAX)
    for i in range(5):
        cv2.imwrite(str(folder / 'frames <b>' / f'{i}.png'), texture[10:90, 3 * i:3 * i + 128])
    status = main([
        'evaluate', str(folder / 'frames <b>'), '--models', 'dis,farneback', '--corrupt',
        'rain:2+4', '-o', str(folder / 'out'),
    ])
    assert status == 0
    return folder / 'out'


class Proxy:
    """Stands between the browser and everything; notes what is asked for."""

    def __init__(self):
        asked = self.asked = []

        class Handler(socketserver.StreamRequestHandler):
            def handle(self):
                asked.append(self.rfile.readline().decode(errors='replace'))
                self.wfile.write(b'HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n')

        self.server = socketserver.ThreadingTCPServer(('127.0.0.1', 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def outside(self):
        """Requests of the page: the browser's own services are not the page's."""
        own = ('google.com', 'googleapis.com', 'gstatic.com', 'gvt1.com')
        return [line for line in self.asked if not re.search('|'.join(own), line)]


def browse(page, profile, *options):
    proxy = Proxy()
    command = [
        CHROMIUM, '--headless', '--no-sandbox', '--disable-gpu', '--no-first-run',
        '--disable-background-networking', '--disable-component-update', '--disable-sync',
        f'--user-data-dir={profile}', '--enable-logging=stderr', '--v=0',
        f'--proxy-server=127.0.0.1:{proxy.server.server_address[1]}', *options, page.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90)
    proxy.server.shutdown()
    proxy.server.server_close()
    console = [line for line in done.stderr.splitlines() if ':CONSOLE:' in line]
    return done.stdout, console, proxy.outside()


@pytest.mark.skipif(CHROMIUM is None, reason='needs Chromium')
def test_opens_without_errors_or_requests(report, tmp_path):
    picture = tmp_path / 'shot.png'
    # The check itself must be able to fail.
    bad = tmp_path / 'bad.html'
    bad.write_text('<img src="http://example.invalid/x.png"><script>console.error(1)</script>')
    for attempt in range(3):
        # On a machine that is very busy the browser may be gone before it has asked.
        _, console, outside = browse(
            bad, tmp_path / f'bad{attempt}', f'--screenshot={tmp_path / "bad.png"}'
        )
        seen = bool(console) and any('example.invalid' in line for line in outside)
        if seen:
            break
    assert seen, (console, outside)

    _, console, outside = browse(
        report / 'report.html', tmp_path / 'p2', f'--screenshot={picture}',
        '--window-size=1000,3000',
    )
    assert (console, outside) == ([], [])
    image = cv2.imread(str(picture))
    assert image.shape[:2] == (3000, 1000) and image.std() > 20

    dom, _, _ = browse(report / 'report.html', tmp_path / 'p3', '--dump-dom')
    assert dom.count('<figure') >= 3 and 'Which proxy to believe' in dom
    # The source's name is text, not markup.
    assert 'frames &lt;b&gt;' in dom and 'frames <b>' not in dom


def test_frames_can_be_left_out(report, tmp_path):
    # The results are there: only the report is written anew.
    words = ['evaluate', str(report.parent / 'frames <b>'), '--models', 'dis,farneback',
             '--corrupt', 'rain:2+4', '-o', str(report)]
    with_frames = (report / 'report.html').read_text()
    assert main([*words, '--no-frames']) == 0
    without = (report / 'report.html').read_text()
    (report / 'report.html').write_text(with_frames)
    assert 'first frame' in with_frames and 'first frame' not in without
    # Of each strip the flows stay: 2 models, against a frame and 2 differences more.
    assert with_frames.count('<img') * 2 == without.count('<img') * 5


def test_names_no_winner_where_nothing_measured_finds_one(report, tmp_path):
    words = ['evaluate', str(report.parent / 'frames <b>'), '--models', 'dis,farneback']
    assert main([*words, '-o', str(tmp_path)]) == 0
    markdown = (tmp_path / 'report.md').read_text()
    assert 'Nothing here tells which model is best' in markdown
    rows = [line for line in markdown.splitlines() if line.startswith('| ')]
    assert not any('**' in row for row in rows) and '★ lowest' not in markdown


class References(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found += [value for key, value in attrs if key in ('src', 'href', 'srcset', 'data')]


def test_is_one_file(report):
    text = (report / 'report.html').read_text()
    parser = References()
    parser.feed(text)
    assert parser.found and all(value.startswith('data:') for value in parser.found)
    assert 'url(' not in text and '@import' not in text and '<script' not in text
    assert len(text) < 1_500_000


def test_says_what_to_run_and_that_it_is_a_proxy(report):
    markdown = (report / 'report.md').read_text()
    assert re.search(r'\*\*Run (dis|farneback): drift', markdown)
    assert 'no ground truth' in markdown and 'rain:4' in markdown
    tables = [line for line in markdown.splitlines() if line.startswith('|')]
    assert all(line.endswith('|') for line in tables) and len(tables) > 10
