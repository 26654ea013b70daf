/// Most of some alike things that a message lists.
const LISTED_MAX: usize = 6;

/// The first of some things, and how many more there are.
pub(super) fn listed(things: &[String], separator: &str) -> String {
    let shown = &things[..things.len().min(LISTED_MAX)];
    let mut text = shown.join(separator);
    if things.len() > shown.len() {
        text += &format!("{separator}and {} more", things.len() - shown.len());
    }
    text
}
