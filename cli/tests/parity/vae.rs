//! The image autoencoder.

use burn::tensor::Device;
use retouch_models::autoencoder_kl::AutoencoderKl;
use retouch_models::weights::Pretrained;

use crate::case::Case;
use crate::compare::Outputs;

pub(crate) fn autoencoder_kl(case: &Case) -> anyhow::Result<Outputs> {
    let device = Device::flex();
    let vae = AutoencoderKl::load(case.model_folder()?.path(), &device)?;
    Ok(Outputs::default()
        .float("out.moments", vae.encode(case.input("pixels", &device)?))
        .float("out.decoded", vae.decode(case.input("latents", &device)?)))
}
