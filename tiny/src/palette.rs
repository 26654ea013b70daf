//! The colours of the world: saturated for objects, unsaturated for backgrounds, and all of them
//! further apart than the oracle's tolerance.

use serde::{Deserialize, Serialize};

/// A colour as red, green and blue in 0..1.
pub type Rgb = [f32; 3];

/// What an object can be painted with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Color {
    /// Red.
    Red,
    /// Green.
    Green,
    /// Blue.
    Blue,
    /// Yellow.
    Yellow,
    /// Purple.
    Purple,
    /// Cyan.
    Cyan,
}

impl Color {
    /// Every colour.
    pub const ALL: [Self; 6] = [
        Self::Red,
        Self::Green,
        Self::Blue,
        Self::Yellow,
        Self::Purple,
        Self::Cyan,
    ];

    /// The word that instructions use.
    pub fn word(self) -> &'static str {
        match self {
            Self::Red => "red",
            Self::Green => "green",
            Self::Blue => "blue",
            Self::Yellow => "yellow",
            Self::Purple => "purple",
            Self::Cyan => "cyan",
        }
    }

    /// The paint.
    pub fn rgb(self) -> Rgb {
        match self {
            Self::Red => [0.90, 0.10, 0.10],
            Self::Green => [0.10, 0.70, 0.15],
            Self::Blue => [0.15, 0.20, 0.90],
            Self::Yellow => [0.95, 0.85, 0.10],
            Self::Purple => [0.75, 0.15, 0.80],
            Self::Cyan => [0.10, 0.80, 0.85],
        }
    }
}

/// What lies behind the objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Background {
    /// White.
    White,
    /// Black.
    Black,
    /// Gray.
    Gray,
    /// Beige.
    Beige,
}

impl Background {
    /// Every background.
    pub const ALL: [Self; 4] = [Self::White, Self::Black, Self::Gray, Self::Beige];

    /// The word that instructions use.
    pub fn word(self) -> &'static str {
        match self {
            Self::White => "white",
            Self::Black => "black",
            Self::Gray => "gray",
            Self::Beige => "beige",
        }
    }

    /// The paint.
    pub fn rgb(self) -> Rgb {
        match self {
            Self::White => [0.96, 0.96, 0.96],
            Self::Black => [0.06, 0.06, 0.06],
            Self::Gray => [0.50, 0.50, 0.50],
            Self::Beige => [0.85, 0.70, 0.50],
        }
    }
}

/// A colour as a picture holds it.
pub(crate) fn bytes(color: Rgb) -> [u8; 3] {
    color.map(|channel| (255.0 * channel).round() as u8)
}

/// The brightness that an eye sees, by the weights of ITU-R BT.601.
pub fn luma([red, green, blue]: Rgb) -> f32 {
    0.299 * red + 0.587 * green + 0.114 * blue
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::TOLERANCE;

    #[test]
    fn paints_are_further_apart_than_the_oracle_tolerates() {
        let paints: Vec<Rgb> = Color::ALL
            .iter()
            .map(|color| color.rgb())
            .chain(Background::ALL.iter().map(|background| background.rgb()))
            .collect();
        for (i, a) in paints.iter().enumerate() {
            for b in &paints[..i] {
                let distance = a
                    .iter()
                    .zip(b)
                    .map(|(x, y)| (x - y).abs())
                    .fold(0.0, f32::max);
                assert!(distance > 1.5 * TOLERANCE, "{a:?} and {b:?} are too alike");
            }
        }
    }
}
