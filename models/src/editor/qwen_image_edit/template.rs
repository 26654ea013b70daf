//! The conversation that the text encoder reads.

/// Tokens at the begin of the encoded conversation that the transformer does not see: those of the system's turn.
pub(super) const DROPPED_TOKENS: usize = 64;

const BEFORE: &str = "<|im_start|>system\nDescribe the key features of the input image (color, shape, size, texture, \
    objects, background), then explain how the user's text instruction should alter or modify the image. Generate a \
    new image that meets the user's requirements while maintaining consistency with the original input where \
    appropriate.<|im_end|>\n<|im_start|>user\n";

const AFTER: &str = "<|im_end|>\n<|im_start|>assistant\n";

/// An image in the conversation: its begin, one token to be repeated, its end.
#[derive(Clone, Debug)]
pub(super) struct ImageMarkup {
    pub(super) start: String,
    pub(super) token: String,
    pub(super) end: String,
}

/// The conversation about a prompt and images of so many tokens each.
pub(super) fn render(prompt: &str, images: &[usize], markup: &ImageMarkup) -> String {
    let picture = |(index, tokens): (usize, &usize)| {
        let ImageMarkup { start, token, end } = markup;
        format!(
            "Picture {}: {start}{}{end}",
            index + 1,
            token.repeat(*tokens)
        )
    };
    let pictures: String = images.iter().enumerate().map(picture).collect();
    format!("{BEFORE}{pictures}{prompt}{AFTER}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_are_numbered_and_come_before_the_prompt() {
        let markup = ImageMarkup {
            start: "<s>".into(),
            token: "<i>".into(),
            end: "<e>".into(),
        };
        let text = render("make it red", &[2, 1], &markup);
        let expected = "user\nPicture 1: <s><i><i><e>Picture 2: <s><i><e>make it red<|im_end|>\n<|im_start|>assistant\n";
        assert!(text.ends_with(expected), "{text}");
        assert!(text.starts_with(
            "<|im_start|>system\nDescribe the key features of the input image (color, shape,"
        ));
        assert!(!text.contains("  "));
    }
}
