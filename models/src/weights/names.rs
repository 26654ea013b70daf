/// How a component's parameter paths become the names in its checkpoint; by default, they are the names.
///
/// ```
/// use retouch_models::weights::Names;
/// const NAMES: Names = Names {
///     prefix: "model",
///     rename: &[("attn.to_out", "attn.to_out.0")],
///     ignored: &["position_ids"],
/// };
/// assert_eq!(NAMES.key("blocks.3.attn.to_out.weight"), "model.blocks.3.attn.to_out.0.weight");
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct Names {
    /// Comes before every name, without its dot; empty for none.
    pub prefix: &'static str,
    /// (segments of the path, segments of the name), applied in order; whole segments only.
    pub rename: &'static [(&'static str, &'static str)],
    /// Last segments of names that a file may hold and no module needs, such as index buffers
    /// and copies of tied weights.
    pub ignored: &'static [&'static str],
}

impl Names {
    /// The checkpoint name of the parameter at `path`.
    pub fn key(&self, path: &str) -> String {
        let mut name = format!(".{path}.");
        for (from, to) in self.rename {
            name = name.replace(&format!(".{from}."), &format!(".{to}."));
        }
        let name = name.trim_matches('.');
        if self.prefix.is_empty() {
            name.to_owned()
        } else {
            format!("{}.{name}", self.prefix)
        }
    }

    /// Whether `name` belongs to this component at all.
    pub(crate) fn owns(&self, name: &str) -> bool {
        let Some(rest) = name.strip_prefix(self.prefix) else {
            return false;
        };
        (self.prefix.is_empty() || rest.starts_with('.')) && !self.ignores(name)
    }

    fn ignores(&self, name: &str) -> bool {
        self.ignored
            .iter()
            .any(|last| name == *last || name.ends_with(&format!(".{last}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_change_by_whole_segments() {
        let names = Names {
            prefix: "",
            rename: &[("net", "net.0"), ("norm", "ln")],
            ignored: &["embed_tokens.weight"],
        };
        assert_eq!(names.key("net.norm.weight"), "net.0.ln.weight");
        assert_eq!(names.key("subnet.norm1.weight"), "subnet.norm1.weight");
        assert!(names.owns("shared.weight"));
        assert!(!names.owns("encoder.embed_tokens.weight"));
    }

    #[test]
    fn a_prefix_ends_at_a_dot() {
        let names = Names {
            prefix: "visual",
            ..Names::default()
        };
        assert_eq!(names.key("a.b"), "visual.a.b");
        assert!(names.owns("visual.a") && !names.owns("visuals.a") && !names.owns("model.a"));
    }
}
