"""How layers are divided among the multiprocessors of a GPU; see layer.cuh for what teams, chains, blocks and tiles are."""

from typing import NamedTuple

WARPS = 8
MULTIPLE = 16  # rows of weights that the tensor cores take at once
BATCH_MULTIPLE = 8  # rows of the batch that they take at once
ROW_TILES = {"forward": (1, 2, 3, 4), "backward": (1, 2)}  # there are kernels for these
BATCH_TILES = (1, 2, 4)
CHUNK_BYTES = 64
MOST_SCRATCH = 2**30  # bytes that a stack may exchange; it is cleared at each launch, in a third of a millisecond

# Cycles, to choose between splits: derived from what the machine is said to do, not measured.
_EXCHANGE = 1200  # until what a block writes has been seen and read by another
_PRODUCT = 7 / 4  # of one tile of weights by one of the batch; four units do them
_AFTER_ANOTHER = 33  # until a product's sums can be added to
_SHARED = 128  # bytes of shared memory
_FAR = 64  # bytes from the L2 cache


class Device(NamedTuple):
    """Multiprocessors, and the most bytes of shared memory of a block."""

    multiprocessors: int
    shared_bytes: int


class Layer(NamedTuple):
    """What decides how a layer is divided, in one direction or two, or a stack of equal layers.

    Attributes:
      gates, hidden, batch: of each layer and direction.
      chains: directions of the layer, or layers of the stack.
      element_bytes: of a number of the weights.
      steps: of a stack; 0 for a layer by itself, of which they do not matter.
    """

    gates: int
    hidden: int
    batch: int
    chains: int
    element_bytes: int
    steps: int = 0

    @property
    def parts(self) -> int:
        """Of a unit, rows of weights on the way there, and numbers exchanged on the way back: `kParts` of a cell."""
        return 4 if self.steps and self.gates == 3 else self.gates

    @property
    def vectors(self) -> int:
        """That a block multiplies in a step; a layer of a stack also what the one below or above has made."""
        return 2 if self.steps else 1

    @property
    def buffers(self) -> int:
        """Of a team; those of a stack keep the vectors of all steps, and the first."""
        return self.steps + 1 if self.steps else 2


class Split(NamedTuple):
    """Hidden units of a block, and tiles of 16 rows of its weights and of 8 rows of a team's batch."""

    units: int
    row_tiles: int
    batch_tiles: int


def stack(layer: Layer, layers: int, steps: int) -> Layer:
    """So many layers like this one in one launch, for so many steps."""
    return layer._replace(chains=layers, steps=steps)


def fits(layer: Layer, device: Device) -> bool:
    """Whether the weights stay in place, in both passes."""
    return all(best(layer, way, device) is not None for way in ROW_TILES)


def gains_by_stacking(layer: Layer, layers: int, steps: int, device: Device) -> bool:
    """Whether in one launch they should take less time than one after the other; of layers that fit either way.

    A step of a stack takes longer, but none of its layers waits for the last step of another.
    """
    together = stack(layer, layers, steps)
    return (steps + layers - 1) * _best_cycles(together, device) < steps * layers * _best_cycles(layer, device)


def splits(layer: Layer, way: str, device: Device) -> list[Split]:
    """For each number of tiles the best split that fits, the one first that should take least time.

    Of splits that should take the same time the one with the fewest blocks: they have fewer others to wait for. `way` is
    "forward" or "backward".
    """
    found: dict[tuple[int, int], tuple[float, int, Split]] = {}
    for batch_tiles in BATCH_TILES:
        for units in range(1, layer.hidden + 1):
            rows = units * layer.parts if way == "forward" else units
            row_tiles = -(-rows // MULTIPLE)
            if row_tiles not in ROW_TILES[way]:
                break
            split = Split(units, row_tiles, batch_tiles)
            if _at_once(layer, split, device) >= 1 and shared_bytes(layer, way, split) <= device.shared_bytes:
                one = _all_cycles(layer, way, split, device), blocks(layer, split), split
                found[row_tiles, batch_tiles] = min(one, found.get((row_tiles, batch_tiles), one))
    return [split for *_, split in sorted(found.values())]


def best(layer: Layer, way: str, device: Device) -> Split | None:
    """The first of `splits`, None where there is none."""
    return next(iter(splits(layer, way, device)), None)


def blocks(layer: Layer, split: Split) -> int:
    """Blocks of a team."""
    return -(-layer.hidden // split.units)


def _best_cycles(layer: Layer, device: Device) -> float:
    """Of one step there and one back."""
    ways = {way: best(layer, way, device) for way in ROW_TILES}
    return sum(_all_cycles(layer, way, split, device) for way, split in ways.items() if split is not None)


def _all_cycles(layer: Layer, way: str, split: Split, device: Device) -> float:
    """Of one step of all rows of the batch."""
    return -(-tiles(layer, split) // _at_once(layer, split, device)) * _cycles(layer, way, split)


def scratch_bytes(layer: Layer, way: str, split: Split, device: Device) -> int:
    """Of the memory through which the blocks of one launch exchange what they make, and its flags."""
    buffer = chunks(layer, way) * BATCH_MULTIPLE * split.batch_tiles * CHUNK_BYTES
    of_team = layer.buffers * buffer + 4 * blocks(layer, split)
    return teams(layer, split, device) * of_team


def most_scratch_bytes(layer: Layer, device: Device) -> int:
    """Of the pass that takes more; of a layer that fits."""
    ways = {way: best(layer, way, device) for way in ROW_TILES}
    return max(scratch_bytes(layer, way, split, device) for way, split in ways.items() if split is not None)


def teams(layer: Layer, split: Split, device: Device) -> int:
    """Teams of one launch, of all chains together."""
    return max(1, min(tiles(layer, split), _at_once(layer, split, device))) * layer.chains


def tiles(layer: Layer, split: Split) -> int:
    """Tiles of the batch; one team takes one."""
    return -(-layer.batch // (BATCH_MULTIPLE * split.batch_tiles))


def chunks(layer: Layer, way: str) -> int:
    """Of 64 bytes for each row of the batch, in a vector that the blocks of a team exchange."""
    of_units = -(-layer.hidden * layer.element_bytes // CHUNK_BYTES)
    return of_units if way == "forward" else of_units * layer.parts


def shared_bytes(layer: Layer, way: str, split: Split) -> int:
    """Of shared memory that a block takes: `Product::shared_bytes`."""
    sums = WARPS * BATCH_MULTIPLE * split.batch_tiles * (MULTIPLE * split.row_tiles + 4) * 4
    beyond = max(0, _chunks_of_warp(layer, way) - _held(layer, way, split))
    return sums + WARPS * beyond * split.row_tiles * MULTIPLE * CHUNK_BYTES


def _chunks_of_warp(layer: Layer, way: str) -> int:
    return -(-chunks(layer, way) // (WARPS // layer.vectors))


def _held(layer: Layer, way: str, split: Split) -> int:
    """Chunks whose weights a warp keeps in registers: `Product::kHeld`, of what forward.cuh and backward.cuh leave for them."""
    rows, batch = MULTIPLE * split.row_tiles, BATCH_MULTIPLE * split.batch_tiles
    if way == "forward":
        registers = (136 if layer.steps else 186) - (8 + 2 * layer.gates) * -(-(rows // layer.parts * batch) // (32 * WARPS))
    else:
        registers = (172 if layer.steps else 194) - 24 * -(-rows * batch // (32 * WARPS))
    of_chunk, sums = 8 * split.row_tiles + 4 * split.batch_tiles, 4 * split.row_tiles * split.batch_tiles * _turns(split)
    return max(1, min(-(-12 // split.row_tiles), (registers - sums) // of_chunk))


def _turns(split: Split) -> int:
    """Sums that are made of each tile: `Product::kTurns`."""
    both = split.row_tiles * split.batch_tiles
    return 4 if both == 1 else 2 if both < 4 else 1


def _at_once(layer: Layer, split: Split, device: Device) -> int:
    """Tiles that have a multiprocessor for every block."""
    return device.multiprocessors // (blocks(layer, split) * layer.chains)


def _cycles(layer: Layer, way: str, split: Split) -> float:
    """Of one step."""
    pieces, rows = chunks(layer, way) * layer.vectors, BATCH_MULTIPLE * split.batch_tiles
    sums = 2 * WARPS * rows * MULTIPLE * split.row_tiles * 4 / _SHARED
    read = pieces * rows * CHUNK_BYTES / _FAR
    weights = (shared_bytes(layer, way, split) - sums * _SHARED / 2) / _SHARED
    products = 2 * pieces * split.row_tiles * split.batch_tiles * _PRODUCT
    waited = 2 * _chunks_of_warp(layer, way) / _turns(split) * _AFTER_ANOTHER
    return _EXCHANGE + max(read, weights, products, waited) + sums
