"""What the files of a run take on disk, from the config and N alone."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

from skerch.decompositions.eigh_file import CHUNK_COLUMNS
from skerch.hdf5 import even_width, stored_size
from skerch.jobs.commands.seigh.costs import ITEMS
from skerch.jobs.config import Config
from skerch.jobs.stages.layout import array_manifest

HEADER = 4096  # bytes of an HDF5 file besides its numbers, the manifest in a block among them
NUMBERS = 300  # bytes of overlap.json for each k: fifteen numbers as text
FIGURE = 150_000  # bytes of a Hessian's figure


@dataclass(frozen=True)
class Disk:
    """The bytes of one Hessian's files."""

    blocks: int  # and ranges
    merged: int
    eigenvectors: int
    analysis: int  # and the gradient
    keep_blocks: bool

    @property
    def stays(self) -> int:
        """What is there in the end."""
        results = self.merged + self.eigenvectors + self.analysis
        return results + self.blocks * self.keep_blocks

    @property
    def peak(self) -> int:
        """What is there at the worst moment: blocks go once the merged file is verified."""
        return max(self.stays, self.blocks + self.merged)


def hessian_disk(config: Config, N: int) -> Disk:
    """The disk that one Hessian takes."""
    sketch, item = config.sketch, ITEMS[config.hessian.dtype]
    rounds, k, q = sketch.each_round(), sketch.outer, sketch.probes
    before = [0, *accumulate(each.stored for each in rounds)]
    m, first = before[-1], rounds[0].columns
    found = sum(each.columns for each in rounds[1:])
    inner = first * rounds[0].compresses
    start = 0 if sketch.start is None else first  # columns of Q₁; the first Hessian has none

    blocks, ranges = 0, [0]
    for number, each in enumerate(rounds):
        for block in array_manifest(config, each, N).blocks():
            width = block.stop - block.start
            sketched = (first * block.stored + inner * (block.kind == "test")) * (number == 0)
            blocks += (
                HEADER + stored_size((N * block.stored, width), item) + sketched * width * item
            )
        if number:
            Q = stored_size((N, each.columns), item, sketch.block_size)
            new = sum(each.columns for each in rounds[1 : number + 1])
            ranges.append(HEADER + Q + 8 * before[number] * (before[number] + new))
    blocks += ranges[-1]  # those before are gone by the merge
    if start:
        blocks += HEADER + stored_size((N, start), item, sketch.block_size)

    m += start
    small = (m + q) ** 2 + 2 * m**2 + first * (rounds[0].stored + q) + inner * first
    merged = HEADER + 8 * (small + (before[-2] + start) * (found + start))
    if config.consolidate:
        width = sketch.block_size
        merged += stored_size((N, m), item, even_width(m, width))
        merged += stored_size((N, q), item, even_width(q, width))
    eigenvectors = HEADER + stored_size((N, k), item, even_width(k, CHUNK_COLUMNS))
    analysis = HEADER + stored_size((N,), item) + NUMBERS * k + FIGURE
    return Disk(blocks, merged, eigenvectors, analysis, config.keep_blocks)


def training_disk(config: Config, N: int) -> int:
    """The bytes of the recorded parameters."""
    return HEADER + len(config.training.record_steps) * stored_size((N, 1), 4)
