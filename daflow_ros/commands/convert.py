# SPDX-License-Identifier: Apache-2.0
"""``daflow convert``: a `daflow` folder from DiT4SR, SD3.5's VAE and RAFT."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

EPILOG = """
The embedding of the empty prompt is made once, where diffusers, transformers and the text encoders
of SD3.5 are at hand:

  pipe = diffusers.StableDiffusion3Pipeline.from_pretrained(SD35, transformer=None, vae=None)
  text, _, pooled, _ = pipe.encode_prompt('', None, None, max_sequence_length=77)
  safetensors.torch.save_file(
      {'prompt_embeds': text.contiguous(), 'pooled_prompt_embeds': pooled.contiguous()}, FILE)

DiT4SR's weights are non-commercial and SD3.5's under Stability's community licence: what you
assemble is bound by both.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this verb."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    parser.add_argument('--dit4sr', type=Path, required=True, metavar='FOLDER',
                        help='a DiT4SR checkpoint (dit4sr_q, dit4sr_f or dit4sr_r1)')
    parser.add_argument('--vae', type=Path, required=True, metavar='FOLDER',
                        help='SD3.5 medium, or its vae folder')
    parser.add_argument('--raft', type=Path, required=True, metavar='FILE',
                        help='RAFT checkpoint of princeton-vl or torchvision')
    parser.add_argument('--null-text', type=Path, required=True, metavar='FILE',
                        help='safetensors with the embedding of the empty prompt, see below')
    parser.add_argument('--output', type=Path, required=True, metavar='FOLDER')
    parser.add_argument('--taps', type=int, nargs='+', default=[3, 13, 16, 17],
                        help='layers whose queries and keys are used (default: %(default)s)')
    parser.add_argument('--frames', type=int, default=3, help='F (default: %(default)s)')
    parser.add_argument('--one-step', action='store_true',
                        help='leave out the weights that only several denoising steps need')


def run(args: argparse.Namespace) -> int:
    """Assemble, write, and say what was written."""
    from daflow_ros.models.convert import assemble
    from daflow_ros.models.raft_checkpoints import CheckpointError

    if args.output.exists() and (not args.output.is_dir() or any(args.output.iterdir())):
        print(f'{args.output}: already there and not an empty folder', file=sys.stderr)
        return 1
    try:
        model = assemble(
            args.dit4sr, args.vae, args.raft, args.null_text, sorted(args.taps), args.frames,
            args.one_step, head_scales=head_scales(len(args.taps)),
        )
        model.save_pretrained(args.output)
    except (CheckpointError, OSError) as error:
        print(f'convert: {error}', file=sys.stderr)
        return 1
    for name, part in model.named_children():
        count = sum(tensor.numel() for tensor in part.state_dict().values())
        print(f'{name:12} {count / 1e6:10.2f} M')
    print(f'written to {args.output}; until its heads are trained its flow is that of {args.raft}')
    return 0


def head_scales(taps: int) -> tuple[int, ...]:
    """The paper's (1, 1, 2, 2) for four taps; half at each scale for other numbers."""
    return (1,) * (taps // 2) + (2,) * (taps - taps // 2)
