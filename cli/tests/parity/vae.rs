//! The image autoencoder.

use burn::tensor::Device;
use retouch_models::autoencoder_kl::AutoencoderKl;
use retouch_models::weights::Pretrained;

use crate::case::Case;
use crate::compare::Outputs;

pub(crate) fn autoencoder_kl(case: &Case, device: &Device) -> anyhow::Result<Outputs> {
    let vae = AutoencoderKl::load_as(case.model_folder()?.path(), device, case.dtype)?;
    Ok(Outputs::default()
        .float(
            "out.moments",
            vae.encode(case.narrow_input("pixels", device)?),
        )
        .float(
            "out.decoded",
            vae.decode(case.narrow_input("latents", device)?),
        ))
}
