"""Every component that has cases, by the name in case.toml."""

import flux
import text
import vae

MAKERS = {
    "flux_transformer": flux.make,
    "autoencoder_kl": vae.make,
    "t5_encoder": text.make_t5,
    "clip_text": text.make_clip,
}
