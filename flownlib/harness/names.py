"""What identifiers in results files are called where a person reads them; any other name loses its underscores only."""

from __future__ import annotations

NAMES = {
    # initialisations and few-shot methods
    "caml": "CAML",
    "class_tokens": "class-token flow",
    "class_tokens_imitating": "class-token flow, flow matching alone",
    "class_tokens_queries_only": "class-token flow, query loss alone",
    "cross_entropy_only": "head flow, query loss alone",
    "flown_ensemble_10": "head flow, ten samples",
    "flown_mean": "head flow, no noise",
    "flown_query": "head flow, query loss as well",
    "flown_sample": "head flow, one sample",
    "kaiming": "Kaiming initialisation",
    "many_shot_oracle": "many-shot oracle",
    "plda": "PLDA",
    "prototypical_centroid": "prototypical body, centroid",
    "prototypical_centroid_3x": "prototypical body, centroid, three times the training",
    "prototypical_logistic": "prototypical body, logistic regression",
    "retrieval_matched": "retrieval, matched",
    "softmax_logistic": "softmax body, logistic regression",
    # generators and encoders
    "deep_weight_flow": "DeepWeightFlow",
    "flow_all": "flow, all components",
    "flow_few": "flow, few components",
    "gaussian_diagonal": "Gaussian, diagonal",
    "gaussian": "Gaussian",
    "latent_ddim": "latent DDIM",
    "latent_ddpm": "latent DDPM",
    "latent_flow_1_step": "latent flow, one step",
    "latent_flow_caml": "latent flow, CAML context",
    "latent_flow_unconditional": "latent flow, no context",
    "latent_flow_wrong_context": "latent flow, another task's context",
    "lora": "LoRA",
    "lora_distilled": "LoRA, distilled",
    "p_diff": "p-diff",
    "pca": "PCA",
    "pca_flow": "PCA flow",
    "vae": "VAE",
    "vae_conv1d": "VAE, 1-d convolutions",
    "vae_graph": "VAE, graph",
    "vae_large": "VAE, large",
    "vae_tokens": "VAE, tokens",
    "vae_weights": "VAE, weights alone",
    "zoo_held_out": "held-out networks",
    "soup": "average (soup)",
    # choices
    "caml_context": "CAML context",
    "guidance_0": "guidance 0",
    "predict_x_1": "predicts x_1",
    "x_1": "x_1",
    "pixel_context": "context of pixels",
    "weights_predict_x_1": "on weights, predicts x_1",
    "weights_predict_noise": "on weights, predicts noise",
    # ways of training, zoos, domains
    "lanes": "compiled",
    "loop": "PyTorch, a loop",
    "torch": "PyTorch",
    "vmap": "PyTorch, vmap",
    "far": "real digits",
    "norms_head": "norms and head",
    "mlp_20_unseen": "mlp 20, unseen",
    "digits_handwritten": "real digits",
}


def named(identifier: str) -> str:
    """The name to show, e.g. "VAE, graph" for "vae_graph"."""
    return NAMES.get(identifier, identifier.replace("_", " "))
