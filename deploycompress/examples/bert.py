"""BERT over token ids, as a classifier of sentences: transformers' network at any size."""

from __future__ import annotations

from torch import nn


def build(
    layers: int = 12,
    width: int = 768,
    heads: int = 12,
    hidden: int = 3072,
    words: int = 30_522,
    length: int = 512,
    classes: int = 2,
    dropout: float = 0.1,
) -> nn.Module:
    """Ids and their mask, int64 [batch, up to ``length``], to ``logits`` [batch, classes]; untrained.

    With the defaults BERT-base; with 6 layers of DistilBERT's size (Sanh et al., 2019, section 3). Its parameters have
    the names that ``save_pretrained`` of a ``BertForSequenceClassification`` writes to model.safetensors.
    """
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=words,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=hidden,
        max_position_embeddings=length,
        num_labels=classes,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    return BertForSequenceClassification(config)  # type: ignore[no-any-return]
