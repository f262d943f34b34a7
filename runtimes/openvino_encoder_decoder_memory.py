"""What an encoder-decoder session in OpenVINO will take, from its files' sizes and the processor.

From what students of the shapes of T5-small and FLAN-T5-base took in OpenVINO 2026.4 on x86-64 with sources of 512
tokens, the file's own pages let go: within a sixth of this.
"""

from __future__ import annotations

from .decoder_contract import DecoderMemory
from .openvino_decoder_memory import ENGINE, LAYER, resident_weights
from .openvino_encoder_decoder_file import EncoderDecoderFile

SECOND_MODEL = 25 << 20
"""What two models take more than one, and the machine code that long sources need."""

_TABLE_BITS = {"fp32": 32.0, "w8a8-static": 8.0, "w8a8-dynamic": 8.0, "w4a8-dynamic": 4.5}


def memory_of(
    file: EncoderDecoderFile, context: int, source_context: int, chunk: int, most_verified: int, widened: bool
) -> DecoderMemory:
    """The prediction, in bytes; ``widened``: integer weights run as float32."""
    # Rows of the embedding table are read where the file is mapped; as the output head it is packed beside that.
    table = int(file.vocabulary * file.hidden * _TABLE_BITS.get(file.precision, 32.0) / 8)
    # What attention of the source adds to scores, and what an encoder layer and a run of prefill compute.
    mask = source_context * source_context * file.heads
    rows = max(source_context, chunk) * (3 * file.neurons + 4 * file.hidden)
    logits = 2 * file.vocabulary * (1 + most_verified)
    layers = file.layers + file.source_layers
    return DecoderMemory(
        weights=resident_weights(file, widened) + table,
        # The engine's variables grow by doubling; what it gives out of a source it keeps twice, in turns.
        cache=2 * (context * file.token_bytes + source_context * file.source_token_bytes),
        scratch=4 * (mask + rows + logits) + layers * LAYER,
        engine=ENGINE + SECOND_MODEL,
    )
