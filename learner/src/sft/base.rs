//! The editor that a fine-tuning starts from.

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Device, Tensor};
use retouch_models::autoencoder_kl::AutoencoderKl;
use retouch_models::clip::ClipText;
use retouch_models::editor::{Editor, Encoders, Parts};
use retouch_models::flux::FluxTransformer;
use retouch_models::init::Init;
use retouch_models::scheduler::FlowMatchScheduler;
use retouch_models::t5::T5Encoder;
use retouch_models::tokenizer::Tokenizer;
use retouch_models::weights::{LoadError, read_config};

use super::{SftOptions, Start, TextEncoders, Trained};

/// The base's folder as an editor. What starts at random needs only its `config.json` there.
pub(super) fn load(options: &SftOptions) -> Result<Editor, LoadError> {
    let random = matches!(
        options.trained,
        Trained::Full {
            start: Start::Random,
            ..
        }
    );
    if random {
        random_start(options)
    } else {
        Editor::load(&options.base, &options.device, Parts::All)
    }
}

fn random_start(options: &SftOptions) -> Result<Editor, LoadError> {
    let (base, device) = (&options.base, &options.device);
    let init = Init::new(options.seed, device);
    let transformer_config = read_config(&base.join("transformer").join("config.json"))?;
    let transformer = FluxTransformer::init(&transformer_config, &init).map(&mut Quiet::default());
    let (text_encoder, text_encoder_2) = match options.text_encoders() {
        TextEncoders::Frozen => loaded_text_encoders(options, device)?,
        TextEncoders::Trained => random_text_encoders(options, &init)?,
    };
    let encoders = Encoders {
        vae: AutoencoderKl::load(&base.join("vae"), device)?,
        text_encoder,
        text_encoder_2,
        tokenizer: Tokenizer::load(&base.join("tokenizer"))?,
        tokenizer_2: Tokenizer::load(&base.join("tokenizer_2"))?,
    };
    let scheduler = FlowMatchScheduler::load(&base.join("scheduler"))?;
    Ok(Editor::new(transformer, scheduler, encoders, device))
}

fn loaded_text_encoders(
    options: &SftOptions,
    device: &Device,
) -> Result<(ClipText, T5Encoder), LoadError> {
    let clip = ClipText::load(&options.base.join("text_encoder"), device)?;
    Ok((
        clip,
        T5Encoder::load(&options.base.join("text_encoder_2"), device)?,
    ))
}

fn random_text_encoders(
    options: &SftOptions,
    init: &Init,
) -> Result<(ClipText, T5Encoder), LoadError> {
    let clip = read_config(&options.base.join("text_encoder").join("config.json"))?;
    let t5 = read_config(&options.base.join("text_encoder_2").join("config.json"))?;
    Ok((ClipText::init(&clip, init), T5Encoder::init(&t5, init)))
}

/// Zeroes modulations and the output, so that every block starts as the identity and
/// the first prediction is zero, as diffusion transformers are trained from nothing.
#[derive(Default)]
struct Quiet {
    path: Vec<String>,
}

impl Quiet {
    fn zeroes(&self) -> bool {
        match self.path.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["proj_out", _] => true,
            [.., norm, "linear", _] => norm.starts_with("norm"),
            _ => false,
        }
    }
}

impl ModuleMapper for Quiet {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if self.zeroes() {
            param.map(|value| value.zeros_like())
        } else {
            param
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_random_start_is_quiet() {
        let zeroes = |path: &str| {
            let path = path.split('.').map(String::from).collect();
            Quiet { path }.zeroes()
        };
        assert!(zeroes("proj_out.weight") && zeroes("norm_out.linear.bias"));
        assert!(zeroes("transformer_blocks.1.norm1_context.linear.weight"));
        assert!(!zeroes("single_transformer_blocks.0.proj_out.weight"));
        assert!(!zeroes("transformer_blocks.0.attn.norm_q.weight"));
        assert!(!zeroes("time_text_embed.timestep_embedder.linear_1.weight"));
    }
}
