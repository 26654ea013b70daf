use std::collections::BTreeMap;

/// Lines about tensors, those about alike layers in one: `blocks.{0..18}.bias` for nineteen names.
///
/// An item is a name and what is said of it. The first number between dots is the layer's.
pub(crate) fn folded<'a>(items: impl IntoIterator<Item = (&'a str, String)>) -> Vec<String> {
    let mut lines: BTreeMap<(String, String), Vec<u64>> = BTreeMap::new();
    let mut whole = Vec::new();
    for (name, rest) in items {
        match split_number(name) {
            Some((head, number, tail)) => {
                let line = lines.entry((head.to_owned(), format!("{tail}{rest}")));
                line.or_default().push(number);
            }
            None => whole.push(format!("{name}{rest}")),
        }
    }
    let layers = lines.into_iter().flat_map(|((head, tail), numbers)| {
        let runs = runs(numbers).into_iter();
        runs.map(move |(first, last)| match first == last {
            true => format!("{head}{first}{tail}"),
            false => format!("{head}{{{first}..{last}}}{tail}"),
        })
    });
    layers.chain(whole).collect()
}

/// `blocks.3.bias` as `blocks.`, 3, `.bias`.
fn split_number(name: &str) -> Option<(&str, u64, &str)> {
    let mut start = 0;
    for segment in name.split('.') {
        let end = start + segment.len();
        let inside = start > 0 && end < name.len();
        // A number that is written otherwise than we would write it is no layer's.
        if let Ok(number) = segment.parse::<u64>()
            && inside
            && number.to_string() == segment
        {
            return Some((&name[..start], number, &name[end..]));
        }
        start = end + 1;
    }
    None
}

/// First and last of each run of numbers that follow one another.
fn runs(mut numbers: Vec<u64>) -> Vec<(u64, u64)> {
    numbers.sort_unstable();
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for number in numbers {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => runs.push((number, number)),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alike_layers_are_one_line_and_gaps_are_kept() {
        let names = [
            "a.0.b.0.w",
            "a.1.b.0.w",
            "a.3.b.0.w",
            "a.0.b.1.w",
            "top.w",
            "a.007.b",
            "9.w",
        ];
        let lines = folded(names.map(|name| (name, String::new())));
        let expected = [
            "a.{0..1}.b.0.w",
            "a.3.b.0.w",
            "a.0.b.1.w",
            "top.w",
            "a.007.b",
            "9.w",
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn only_what_is_said_of_all_is_folded() {
        let items = [
            ("a.0.w", " x".to_owned()),
            ("a.1.w", " x".to_owned()),
            ("a.2.w", " y".to_owned()),
        ];
        assert_eq!(folded(items), ["a.{0..1}.w x", "a.2.w y"]);
    }
}
