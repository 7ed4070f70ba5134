# SPDX-License-Identifier: Apache-2.0
"""Mean EPE of OpenCV's DIS and Farneback on a folder of pairs, in ten lines of their own."""
import pathlib
import sys

import cv2
import numpy as np

errors = {'dis': [], 'farneback': []}
dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
for npz in sorted(pathlib.Path(sys.argv[1]).glob('*.npz')):
    a, b = (cv2.imread(str(npz.with_name(f'{npz.stem}_clean_{i}.jpg')), 0) for i in (1, 2))
    z = np.load(npz)
    ok = np.unpackbits(z['valid'], -1)[:, :a.shape[1]] > 0
    farneback = cv2.calcOpticalFlowFarneback(a, b, None, 0.5, 5, 15, 3, 5, 1.2, 0)
    for name, flow in (('dis', dis.calc(a, b, None)), ('farneback', farneback)):
        errors[name].append(np.linalg.norm(flow - z['flow'].astype('f4'), axis=-1)[ok].mean())
for name, values in errors.items():
    print(name, np.mean(values))
