use burn::module::{ModuleMapper, Param};
use burn::tensor::Tensor;

/// Zeroes modulations and the output, so that every block starts as the identity and
/// the first prediction is zero, as diffusion transformers are trained from nothing.
#[derive(Default)]
pub(super) struct Quiet {
    path: Vec<String>,
}

impl Quiet {
    fn zeroes(&self) -> bool {
        match self.path.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["proj_out", _] => true,
            [.., part, "linear", _] => part.starts_with("norm") || part.ends_with("_mod"),
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
    fn modulations_and_the_output_are_quiet() {
        let zeroes = |path: &str| {
            let path = path.split('.').map(String::from).collect();
            Quiet { path }.zeroes()
        };
        assert!(zeroes("proj_out.weight") && zeroes("norm_out.linear.bias"));
        assert!(zeroes("transformer_blocks.1.norm1_context.linear.weight"));
        assert!(zeroes("transformer_blocks.1.txt_mod.linear.weight"));
        assert!(!zeroes("single_transformer_blocks.0.proj_out.weight"));
        assert!(!zeroes("transformer_blocks.0.attn.norm_q.weight"));
        assert!(!zeroes("time_text_embed.timestep_embedder.linear_1.weight"));
    }
}
