/// A name that is none of a setting's choices.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown {} {name:?}, expected one of {}", setting.to_lowercase(), expected.join(", "))]
pub struct UnknownChoice {
    /// The setting.
    pub setting: &'static str,
    /// The name.
    pub name: String,
    /// The setting's choices.
    pub expected: &'static [&'static str],
}

/// Defines an enum whose variants are named in run files and on command lines.
///
/// The enum serialises as its name, parses from it and displays as it; its schema has the variants' meanings.
#[macro_export]
macro_rules! choice {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
        )]
        pub enum $name {
            $($(#[$variant_doc])* #[serde(rename = $text)] $variant,)+
        }

        impl $name {
            /// All names, in order.
            pub const NAMES: &'static [&'static str] = &[$($text),+];

            /// The name in the run file.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)+
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::UnknownChoice;

            fn from_str(name: &str) -> Result<Self, Self::Err> {
                match name {
                    $($text => Ok(Self::$variant),)+
                    _ => Err($crate::UnknownChoice {
                        setting: stringify!($name),
                        name: name.to_owned(),
                        expected: Self::NAMES,
                    }),
                }
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use crate::{Dtype, Solver};

    #[test]
    fn names_are_read_and_written_alike() {
        for &name in Solver::NAMES {
            let solver: Solver = name.parse().expect("a listed name");
            assert_eq!(solver.to_string(), name);
            let json = serde_json::to_string(&solver).expect("a name");
            assert_eq!(json, format!("{name:?}"));
        }
        assert_eq!(format!("{:>5}", Dtype::F32), "  f32");
    }

    #[test]
    fn an_unknown_name_is_answered_with_the_known_ones() {
        let error = "heun".parse::<Solver>().expect_err("no such solver");
        assert_eq!(
            error.to_string(),
            "unknown solver \"heun\", expected one of euler, ddim, dpm1, dpm2"
        );
    }
}
