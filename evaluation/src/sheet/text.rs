//! Text in pictures, in GNU Unifont: it has a glyph for every character of the Basic Multilingual Plane, Chinese included,
//! so instructions are legible in any language without a font file on the machine.

use image::{Rgb, RgbImage};

/// Height of a line.
pub(super) const LINE: u32 = 18;
const GLYPH_HEIGHT: u32 = 16;
/// Width of half a glyph of Chinese: of every Latin one.
pub(super) const HALF: u32 = 8;
const ELLIPSIS: char = '…';

/// Breaks a text into lines of at most `width` pixels; what is beyond `lines_max` lines is cut with an ellipsis.
pub(super) fn wrap(text: &str, width: u32, lines_max: usize) -> Vec<String> {
    let mut lines = broken(text, width);
    if lines.len() > lines_max {
        lines.truncate(lines_max);
        if let Some(last) = lines.last_mut() {
            while !last.is_empty() && width_of(last) + glyph_width(ELLIPSIS) > width {
                last.pop();
            }
            last.truncate(last.trim_end().len());
            last.push(ELLIPSIS);
        }
    }
    lines
}

/// Breaks at spaces, and anywhere in what is too long or knows no spaces.
fn broken(text: &str, width: u32) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().expect("it begins with one");
        let space = u32::from(!line.is_empty()) * HALF;
        if width_of(line) + space + width_of(word) <= width {
            if space > 0 {
                line.push(' ');
            }
            line.push_str(word);
            continue;
        }
        // A word of Chinese is a sentence: it goes on in this line.
        if space > 0 && word.chars().any(is_wide) && width_of(line) + space < width {
            line.push(' ');
        } else if space > 0 {
            lines.push(String::new());
        }
        push_in_parts(&mut lines, word, width);
    }
    lines
}

fn push_in_parts(lines: &mut Vec<String>, word: &str, width: u32) {
    for character in word.chars() {
        let line = lines.last_mut().expect("it begins with one");
        if !line.is_empty() && width_of(line) + glyph_width(character) > width {
            lines.push(String::new());
        }
        lines
            .last_mut()
            .expect("it begins with one")
            .push(character);
    }
}

/// Width of a line in pixels.
pub(super) fn width_of(text: &str) -> u32 {
    text.chars().map(glyph_width).sum()
}

fn is_wide(character: char) -> bool {
    glyph_width(character) > HALF
}

/// A character without a glyph is as wide as the box that stands for it.
fn glyph_width(character: char) -> u32 {
    unifont::get_glyph(character).map_or(2 * HALF, |glyph| glyph.get_width() as u32)
}

/// Draws one line with its upper left corner at `(x, y)`; what leaves the picture is cut off.
pub(super) fn draw(image: &mut RgbImage, (mut x, y): (u32, u32), text: &str, colour: Rgb<u8>) {
    for character in text.chars() {
        let width = glyph_width(character);
        let glyph = unifont::get_glyph(character);
        for row in 0..GLYPH_HEIGHT {
            for column in 0..width {
                let is_set = match glyph {
                    Some(glyph) => glyph.get_pixel(column as usize, row as usize),
                    None => is_on_box((column, row), width),
                };
                if is_set && let Some(pixel) = image.get_pixel_mut_checked(x + column, y + row) {
                    *pixel = colour;
                }
            }
        }
        x += width;
    }
}

/// The box that stands for a missing glyph.
fn is_on_box((column, row): (u32, u32), width: u32) -> bool {
    let (right, bottom) = (width - 2, GLYPH_HEIGHT - 3);
    let is_inside = (1..=right).contains(&column) && (2..=bottom).contains(&row);
    is_inside && (column == 1 || column == right || row == 2 || row == bottom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_break_at_spaces_and_end_in_an_ellipsis() {
        let text = "make the ball in the corner red";
        assert_eq!(
            wrap(text, 11 * HALF, 9),
            ["make the", "ball in the", "corner red"]
        );
        let cut = wrap(text, 11 * HALF, 2);
        assert_eq!(cut, ["make the", "ball in th…"]);
        assert!(cut.iter().all(|line| width_of(line) <= 11 * HALF));
        assert_eq!(
            wrap("incomprehensibly", 6 * HALF, 9),
            ["incomp", "rehens", "ibly"]
        );
        assert_eq!(wrap("", 80, 2), [""]);
    }

    #[test]
    fn chinese_breaks_anywhere() {
        let lines = wrap("把 左边的红色圆形变成蓝色", 8 * 2 * HALF, 9);
        assert_eq!(lines, ["把 左边的红色圆", "形变成蓝色"]);
    }

    fn drawn(text: &str) -> RgbImage {
        let mut image = RgbImage::new(32, 16);
        draw(&mut image, (0, 0), text, Rgb([255; 3]));
        image
    }

    #[test]
    fn every_glyph_is_its_own_and_a_missing_one_is_a_box() {
        let ink = |image: &RgbImage| image.pixels().filter(|pixel| pixel.0[0] > 0).count();
        let texts = ["a", "b", "é", "蓝", "色", "\u{1f642}"];
        let pictures = texts.map(drawn);
        for (index, picture) in pictures.iter().enumerate() {
            assert!(ink(picture) > 5, "{}", texts[index]);
            let other = pictures[..index].iter().find(|other| *other == picture);
            assert!(other.is_none(), "{}", texts[index]);
        }
        assert_eq!(drawn("\u{1f642}"), drawn("\u{1f600}"), "boxes are alike");
        assert_eq!(ink(&drawn("     x")), 0, "beyond the edge");
    }
}
