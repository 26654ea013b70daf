//! What can be asked for, in words and as a change of the scene.

use image::RgbImage;
use serde::{Deserialize, Serialize};

use crate::palette::{Background, Color};
use crate::scene::{Object, Scene, Shape, Style};

/// The paper's task kinds that a small image can carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TaskKind {
    /// A new object appears.
    Add,
    /// An object disappears.
    Remove,
    /// An object becomes another one.
    Replace,
    /// An object changes its colour or size.
    Adjust,
    /// The background changes.
    Background,
    /// The whole image is painted differently.
    Style,
    /// One object is kept, on a plain background.
    Extract,
    /// Two edits at once.
    Hybrid,
}

impl TaskKind {
    /// The kind's name, as in the dataset's files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Remove => "remove",
            Self::Replace => "replace",
            Self::Adjust => "adjust",
            Self::Background => "background",
            Self::Style => "style",
            Self::Extract => "extract",
            Self::Hybrid => "hybrid",
        }
    }

    /// Every kind.
    pub const ALL: [Self; 8] = [
        Self::Add,
        Self::Remove,
        Self::Replace,
        Self::Adjust,
        Self::Background,
        Self::Style,
        Self::Extract,
        Self::Hybrid,
    ];

    /// What a good edit of this kind satisfies: the `requirement` of the Edit-R1 format.
    pub fn requirement(self) -> &'static str {
        match self {
            Self::Add => "the new object is there and the rest is kept",
            Self::Remove => "the object is gone and the rest is kept",
            Self::Replace => "the new object is there and the rest is kept",
            Self::Adjust => "the object is changed and the rest is kept",
            Self::Background => "the background is changed and the rest is kept",
            Self::Style => "the style is changed and the rest is kept",
            Self::Extract => "the object is kept and the rest is gone",
            Self::Hybrid => "the two edits are there and the rest is kept",
        }
    }
}

/// One change of a scene. Objects are named by their index in the scene being changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "change")]
pub enum Edit {
    /// Puts a new object into a free cell.
    Add {
        /// The new object.
        object: Object,
    },
    /// Takes an object away.
    Remove {
        /// Which one.
        index: usize,
    },
    /// Puts another shape of another colour in an object's place, at the same size.
    Replace {
        /// Which one.
        index: usize,
        /// The new colour.
        color: Color,
        /// The new shape.
        shape: Shape,
    },
    /// Paints an object in another colour.
    Recolor {
        /// Which one.
        index: usize,
        /// The new colour.
        color: Color,
    },
    /// Makes a small object large or a large one small.
    Resize {
        /// Which one.
        index: usize,
    },
    /// Changes the background.
    Background {
        /// The new background.
        background: Background,
    },
    /// Paints everything differently.
    Style {
        /// The new style.
        style: Style,
    },
    /// Keeps one object only, on the given background.
    Extract {
        /// Which one.
        index: usize,
        /// The background to put it on.
        background: Background,
    },
}

impl Edit {
    /// The scene after the change.
    ///
    /// # Panics
    /// If an index names no object of `scene`.
    pub fn apply(&self, scene: &Scene) -> Scene {
        let mut after = scene.clone();
        match *self {
            Self::Add { object } => after.objects.push(object),
            Self::Remove { index } => drop(after.objects.remove(index)),
            Self::Replace {
                index,
                color,
                shape,
            } => {
                let object = &mut after.objects[index];
                (object.color, object.shape) = (color, shape);
            }
            Self::Recolor { index, color } => after.objects[index].color = color,
            Self::Resize { index } => {
                after.objects[index].size = after.objects[index].size.other();
            }
            Self::Background { background } => after.background = background,
            Self::Style { style } => after.style = style,
            Self::Extract { index, background } => {
                after.objects = vec![after.objects[index]];
                after.background = background;
            }
        }
        after
    }

    /// The instruction that asks for the change.
    pub fn words(&self, scene: &Scene) -> String {
        let name = |index: usize| scene.objects[index].name();
        match *self {
            Self::Add { object } => format!(
                "add a {} {} at the {}",
                object.size.word(),
                object.name(),
                object.cell.words()
            ),
            Self::Remove { index } => format!("remove the {}", name(index)),
            Self::Replace {
                index,
                color,
                shape,
            } => {
                format!(
                    "replace the {} with a {} {}",
                    name(index),
                    color.word(),
                    shape.word()
                )
            }
            Self::Recolor { index, color } => format!("make the {} {}", name(index), color.word()),
            Self::Resize { index } => {
                let new = scene.objects[index].size.other();
                format!("make the {} {}", name(index), new.word())
            }
            Self::Background { background } => {
                format!("change the background to {}", background.word())
            }
            Self::Style {
                style: Style::Plain,
            } => "show the image as it is".to_owned(),
            Self::Style {
                style: Style::Inverted,
            } => "invert the colors of the image".to_owned(),
            Self::Style {
                style: Style::Grayscale,
            } => "show the image in gray tones".to_owned(),
            Self::Style { style: Style::Dark } => "show the image in dark tones".to_owned(),
            Self::Extract { index, background } => {
                format!(
                    "extract the {} on a {} background",
                    name(index),
                    background.word()
                )
            }
        }
    }

    /// The index of the object that the change is about, if it is about one of the source's.
    pub fn index(&self) -> Option<usize> {
        match *self {
            Self::Remove { index }
            | Self::Replace { index, .. }
            | Self::Recolor { index, .. }
            | Self::Resize { index }
            | Self::Extract { index, .. } => Some(index),
            Self::Add { .. } | Self::Background { .. } | Self::Style { .. } => None,
        }
    }
}

/// A source scene, what is asked for, and so the known target.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Case {
    /// The kind of the task.
    pub kind: TaskKind,
    /// The scene before.
    pub source: Scene,
    /// The change or changes; all of them name objects of `source`, and a removal comes last.
    pub edits: Vec<Edit>,
}

impl Case {
    /// The instruction.
    pub fn prompt(&self) -> String {
        let parts: Vec<String> = self
            .edits
            .iter()
            .map(|edit| edit.words(&self.source))
            .collect();
        parts.join(" and ")
    }

    /// What a good edit satisfies.
    pub fn requirement(&self) -> &'static str {
        self.kind.requirement()
    }

    /// The scene after all changes.
    pub fn target_scene(&self) -> Scene {
        self.edits
            .iter()
            .fold(self.source.clone(), |scene, edit| edit.apply(&scene))
    }

    /// The picture to be edited.
    pub fn source_image(&self) -> RgbImage {
        self.source.render()
    }

    /// The picture that is asked for.
    pub fn target_image(&self) -> RgbImage {
        self.target_scene().render()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scene::{Cell, Size};

    fn scene() -> Scene {
        let object = |shape, color, cell| Object {
            shape,
            color,
            size: Size::Small,
            cell,
            offset: (1, -1),
        };
        Scene {
            background: Background::White,
            objects: vec![
                object(Shape::Circle, Color::Red, Cell::TopLeft),
                object(Shape::Square, Color::Blue, Cell::BottomRight),
            ],
            style: Style::Plain,
        }
    }

    fn case(edits: Vec<Edit>) -> Case {
        Case {
            kind: TaskKind::Hybrid,
            source: scene(),
            edits,
        }
    }

    #[test]
    fn two_edits_are_asked_for_and_done_together() {
        let case = case(vec![
            Edit::Recolor {
                index: 1,
                color: Color::Green,
            },
            Edit::Remove { index: 0 },
        ]);
        assert_eq!(
            case.prompt(),
            "make the blue square green and remove the red circle"
        );
        let target = case.target_scene();
        assert_eq!(target.objects.len(), 1);
        assert_eq!(target.objects[0].name(), "green square");
    }

    #[test]
    fn extraction_keeps_the_object_where_it_was() {
        let case = case(vec![Edit::Extract {
            index: 1,
            background: Background::Black,
        }]);
        let target = case.target_scene();
        assert_eq!(target.objects, vec![case.source.objects[1]]);
        assert_eq!(target.background, Background::Black);
        assert_eq!(
            case.prompt(),
            "extract the blue square on a black background"
        );
    }

    #[test]
    fn resizing_names_the_new_size() {
        let case = case(vec![Edit::Resize { index: 0 }]);
        assert_eq!(case.prompt(), "make the red circle large");
        assert_eq!(case.target_scene().objects[0].size, Size::Large);
    }
}
