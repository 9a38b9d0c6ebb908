"""Flax NNX models."""

from s2s_jax.models.attention_decoder import AttentionDecoder as AttentionDecoder
from s2s_jax.models.autoregressive_forecaster import AutoregressiveForecaster as AutoregressiveForecaster
from s2s_jax.models.bridge import Bridge as Bridge
from s2s_jax.models.character_networks import CharacterCNN as CharacterCNN
from s2s_jax.models.character_networks import CharacterCRNN as CharacterCRNN
from s2s_jax.models.character_networks import SequenceStage as SequenceStage
from s2s_jax.models.character_networks import VeryDeepCNN as VeryDeepCNN
from s2s_jax.models.classifier import SequenceClassifier as SequenceClassifier
from s2s_jax.models.classifier import TextClassifier as TextClassifier
from s2s_jax.models.crnn import CRNN as CRNN
from s2s_jax.models.crnn import ColumnEncoder as ColumnEncoder
from s2s_jax.models.crnn import PictureToText as PictureToText
from s2s_jax.models.decoders import AutoregressiveDecoder as AutoregressiveDecoder
from s2s_jax.models.decoders import RepeatVectorDecoder as RepeatVectorDecoder
from s2s_jax.models.encoder import Encoder as Encoder
from s2s_jax.models.forecaster import AttentionForecaster as AttentionForecaster
from s2s_jax.models.forecaster import RepeatVectorForecaster as RepeatVectorForecaster
from s2s_jax.models.forecaster import Sizes as Sizes
from s2s_jax.models.language_model import LanguageModel as LanguageModel
from s2s_jax.models.segment_forecaster import SegmentForecaster as SegmentForecaster
from s2s_jax.models.seq2seq import Seq2Seq as Seq2Seq
from s2s_jax.models.seq2seq import attention_of as attention_of
from s2s_jax.models.seq2seq import decoder_step as decoder_step
