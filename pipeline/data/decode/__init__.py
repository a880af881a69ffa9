"""Encoded images to pixels on the device."""

from pipeline.data.decode.decoder import CpuDecoder as CpuDecoder
from pipeline.data.decode.decoder import Crops as Crops
from pipeline.data.decode.decoder import Decoded as Decoded
from pipeline.data.decode.decoder import Decoder as Decoder
from pipeline.data.decode.decoder import GpuDecoder as GpuDecoder
from pipeline.data.decode.decoder import decoder_for as decoder_for
