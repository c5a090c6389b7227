"""PaLM (2204.02311, section 2), written from the paper: the judge of a family that transformers lacks.

Plain sums over named axes, one head after the other in the reader's mind, nothing fused, nothing of
Ayllu's. transformers lends only its folders: config, files and the names under which they are found.
"""

import math

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput


class PalmConfig(PreTrainedConfig):
    """Widths and counts; what the paper fixes has no key."""

    model_type = "palm"

    def __init__(
        self,
        vocab_size=256000,
        hidden_size=18432,
        intermediate_size=73728,
        num_hidden_layers=118,
        num_attention_heads=48,
        head_dim=256,
        max_position_embeddings=2048,
        layer_norm_epsilon=1e-6,
        rope_theta=10000.0,
        tie_word_embeddings=True,
        **other,
    ):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.head_dim = head_dim
        self.max_position_embeddings = max_position_embeddings
        self.layer_norm_epsilon = layer_norm_epsilon
        self.rope_theta = rope_theta
        for key in ("rope_scaling", "rope_parameters"):  # the paper has none
            assert not other.pop(key, None), key
        super().__init__(tie_word_embeddings=tie_word_embeddings, **other)


class Weight(nn.Module):
    """A matrix or a vector that is called `something.weight`."""

    def __init__(self, *shape):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(shape))


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.q_proj = Weight(c.num_attention_heads * c.head_dim, c.hidden_size)
        self.k_proj = Weight(c.head_dim, c.hidden_size)
        self.v_proj = Weight(c.head_dim, c.hidden_size)
        self.o_proj = Weight(c.hidden_size, c.num_attention_heads * c.head_dim)


class FeedForward(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.gate_proj = Weight(c.intermediate_size, c.hidden_size)
        self.up_proj = Weight(c.intermediate_size, c.hidden_size)
        self.down_proj = Weight(c.hidden_size, c.intermediate_size)


class Layer(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.input_layernorm = Weight(c.hidden_size)
        self.self_attn = Attention(c)
        self.mlp = FeedForward(c)


class Body(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.embed_tokens = Weight(c.vocab_size, c.hidden_size)
        self.layers = nn.ModuleList(Layer(c) for _ in range(c.num_hidden_layers))
        self.norm = Weight(c.hidden_size)


class PalmForCausalLM(PreTrainedModel):
    """y = x + MLP(LayerNorm(x)) + Attention(LayerNorm(x)), layer by layer."""

    config_class = PalmConfig

    def __init__(self, config):
        super().__init__(config)
        self.model = Body(config)
        self.post_init()

    def _init_weights(self, module):
        pass

    def get_input_embeddings(self):
        return self.model.embed_tokens

    def forward(self, input_ids, labels=None, use_cache=False, **_):
        c, model = self.config, self.model
        x = model.embed_tokens.weight[input_ids]
        for layer in model.layers:
            normed = self.layer_norm(x, layer.input_layernorm.weight)
            x = x + self.feed_forward(normed, layer.mlp) + self.attention(normed, layer.self_attn)
        # "We scale the pre-softmax output logits by 1/sqrt(n)": the files keep the last norm's weight with
        # that factor in it, here it is taken out and put where the paper has it.
        root = math.sqrt(c.hidden_size)
        states = self.layer_norm(x, model.norm.weight * root)
        logits = torch.einsum("btc,vc->btv", states, model.embed_tokens.weight) / root
        loss = None
        if labels is not None:
            loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return CausalLMOutput(loss=loss, logits=logits)

    def layer_norm(self, x, weight):
        """Without bias."""
        centred = x - x.mean(-1, keepdim=True)
        return (
            centred / (centred.pow(2).mean(-1, keepdim=True) + self.config.layer_norm_epsilon).sqrt() * weight
        )

    def feed_forward(self, x, w):
        """SwiGLU: swish(x W) times x V, where swish(z) = z sigmoid(z)."""
        gate = torch.einsum("btc,hc->bth", x, w.gate_proj.weight)
        up = torch.einsum("btc,hc->bth", x, w.up_proj.weight)
        return torch.einsum("bth,ch->btc", gate * torch.sigmoid(gate) * up, w.down_proj.weight)

    def attention(self, x, w):
        """Multi-query: many queries, one key and one value for all heads."""
        heads, dim = self.config.num_attention_heads, self.config.head_dim
        q = torch.einsum("btc,hdc->bthd", x, w.q_proj.weight.view(heads, dim, -1))
        k = torch.einsum("btc,dc->btd", x, w.k_proj.weight)
        v = torch.einsum("btc,dc->btd", x, w.v_proj.weight)
        q, k = self.turn(q), self.turn(k[:, :, None])[:, :, 0]
        scores = torch.einsum("bthd,bsd->bhts", q, k) / math.sqrt(dim)
        t = x.shape[1]
        later = torch.arange(t)[None, :] > torch.arange(t)[:, None]
        weights = scores.masked_fill(later, float("-inf")).softmax(-1)
        mixed = torch.einsum("bhts,bsd->bthd", weights, v)
        return torch.einsum("bthd,chd->btc", mixed, w.o_proj.weight.view(-1, heads, dim))

    def turn(self, x):
        """RoPE as a product of complex numbers; the real parts are the first half of a head."""
        dim = self.config.head_dim
        position = torch.arange(x.shape[1], dtype=torch.float32)
        speed = torch.tensor([self.config.rope_theta ** (-2 * i / dim) for i in range(dim // 2)])
        circle = torch.polar(torch.ones(()), position[:, None] * speed)[:, None]
        turned = torch.complex(x[..., : dim // 2], x[..., dim // 2 :]) * circle
        return torch.cat([turned.real, turned.imag], -1)


AutoConfig.register("palm", PalmConfig)
AutoModelForCausalLM.register(PalmConfig, PalmForCausalLM)
