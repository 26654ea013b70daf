//! Which devices a role's workers compute on.

use std::fmt;
use std::str::FromStr;

use retouch_settings::DeviceName;
use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::RunConfig;
use super::errors::{ConfigErrors, Problem};

/// All cards of a node, however many it has.
const ALL_CARDS: &str = "cuda:*";

/// The devices of a role: each of its workers has one of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Devices {
    /// One, or several cards; never none, and none twice.
    Named(Vec<DeviceName>),
    /// All cards of the node: `cuda:*`.
    AllCards,
}

/// A device setting that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidDevices {
    /// A name in it is not a device's.
    #[error(
        "unknown device {0:?}, expected \"cpu\", \"cuda:N\", \"wgpu\", \"cuda:*\" for all cards, or a list of cards"
    )]
    Unknown(String),
    /// The list is empty.
    #[error("the list names no device")]
    None,
    /// The list has a device twice.
    #[error("{0} is named twice: each worker takes one device of the list, in turn")]
    Twice(DeviceName),
    /// The list has something beside cards.
    #[error("{0} stands in a list with other devices: only cards (cuda:N) can be listed together")]
    Mixed(DeviceName),
}

/// A worker can't tell which of a role's devices is its own.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key} = {devices} names several devices, and a worker has one: say which with --device")]
pub struct SeveralDevices {
    /// The setting.
    pub key: &'static str,
    /// Its value.
    pub devices: Devices,
}

impl Devices {
    /// The devices of a list.
    ///
    /// # Errors
    /// If the list is empty, names one twice, or has anything but cards beside another.
    pub fn named(devices: Vec<DeviceName>) -> Result<Self, InvalidDevices> {
        let several = devices.len() > 1;
        if devices.is_empty() {
            return Err(InvalidDevices::None);
        }
        for (position, device) in devices.iter().enumerate() {
            if devices[..position].contains(device) {
                return Err(InvalidDevices::Twice(*device));
            }
            if several && device.card().is_none() {
                return Err(InvalidDevices::Mixed(*device));
            }
        }
        Ok(Self::Named(devices))
    }

    /// The one device, if it is one for sure.
    pub fn only(&self) -> Option<DeviceName> {
        match self {
            Self::Named(devices) => devices.first().copied().filter(|_| devices.len() == 1),
            Self::AllCards => None,
        }
    }

    /// The device of a process that works alone, such as an evaluation.
    pub fn first(&self) -> DeviceName {
        match self {
            Self::Named(devices) => devices.first().copied().unwrap_or(DeviceName::Cpu),
            Self::AllCards => DeviceName::Cuda(0),
        }
    }

    /// The devices by name; none while it is not known how many cards there are.
    pub fn names(&self) -> &[DeviceName] {
        match self {
            Self::Named(devices) => devices,
            Self::AllCards => &[],
        }
    }

    /// Whether they are GPUs of NVIDIA's, which NCCL sums on.
    pub fn are_cards(&self) -> bool {
        self.first().card().is_some()
    }
}

impl From<DeviceName> for Devices {
    fn from(device: DeviceName) -> Self {
        Self::Named(vec![device])
    }
}

impl FromStr for Devices {
    type Err = InvalidDevices;

    fn from_str(text: &str) -> Result<Self, InvalidDevices> {
        match text {
            ALL_CARDS => Ok(Self::AllCards),
            name => Ok(one(name)?.into()),
        }
    }
}

fn one(name: &str) -> Result<DeviceName, InvalidDevices> {
    let unknown = |_| InvalidDevices::Unknown(name.to_owned());
    name.parse().map_err(unknown)
}

/// As in the run file: `"cpu"`, `["cuda:0", "cuda:1"]`.
impl fmt::Display for Devices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AllCards => write!(f, "{ALL_CARDS:?}"),
            Self::Named(devices) => {
                let quoted: Vec<String> =
                    devices.iter().map(|name| format!("\"{name}\"")).collect();
                match quoted.as_slice() {
                    [one] => f.write_str(one),
                    several => write!(f, "[{}]", several.join(", ")),
                }
            }
        }
    }
}

impl Serialize for Devices {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::AllCards => serializer.serialize_str(ALL_CARDS),
            Self::Named(devices) => match devices.as_slice() {
                [one] => serializer.collect_str(one),
                several => serializer.collect_seq(several.iter().map(ToString::to_string)),
            },
        }
    }
}

impl<'de> Deserialize<'de> for Devices {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Names;

        impl<'de> Visitor<'de> for Names {
            type Value = Devices;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a device or a list of cards")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Devices, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Devices, A::Error> {
                let mut devices = Vec::new();
                while let Some(name) = list.next_element::<String>()? {
                    devices.push(one(&name).map_err(serde::de::Error::custom)?);
                }
                Devices::named(devices).map_err(serde::de::Error::custom)
            }
        }

        deserializer.deserialize_any(Names)
    }
}

/// Names the cards behind `cuda:*`, and gives each role that no layer gave a number of workers one for each device.
///
/// `cards` is asked for the node's number of cards only if that matters.
pub(super) fn settle(
    config: &mut RunConfig,
    given: impl Fn(&str) -> bool,
    cards: impl FnOnce() -> Result<usize, String>,
) -> Result<(), ConfigErrors> {
    let settings = [
        ("model.device", &mut config.model.device),
        ("reward.device", &mut config.reward.device),
        ("learner.device", &mut config.learner.device),
    ];
    let mut count = None;
    let mut cards = Some(cards);
    for (key, devices) in settings {
        if *devices != Devices::AllCards {
            continue;
        }
        let asked = cards.take().map(|cards| cards());
        let count = count.get_or_insert_with(|| asked.unwrap_or(Ok(0)));
        *devices = match count {
            Ok(0) => Err("there is none on this machine".to_owned()),
            Ok(count) => Ok(Devices::Named(
                (0..=u8::MAX).take(*count).map(DeviceName::Cuda).collect(),
            )),
            Err(reason) => Err(reason.clone()),
        }
        .map_err(|reason| {
            ConfigErrors::one(Problem {
                origin: "this machine".into(),
                key: key.into(),
                problem: format!("\"{ALL_CARDS}\" means all cards: {reason}"),
            })
        })?;
    }
    follow(config, given);
    Ok(())
}

/// As many workers as devices, where nobody said how many; ranks also have to divide the gradient's shards.
pub(super) fn follow(config: &mut RunConfig, given: impl Fn(&str) -> bool) {
    let several = |devices: &Devices| Some(devices.names().len() as u32).filter(|count| *count > 1);
    let (cluster, learner) = (&mut config.cluster, &mut config.learner);
    let workers = [
        (
            "cluster.rollout_workers",
            &mut cluster.rollout_workers,
            &config.model.device,
        ),
        (
            "cluster.reward_workers",
            &mut cluster.reward_workers,
            &config.reward.device,
        ),
    ];
    for (key, workers, devices) in workers {
        if let Some(count) = several(devices).filter(|_| !given(key)) {
            *workers = count;
        }
    }
    let Some(most) = several(&learner.device).filter(|_| !given("learner.ranks")) else {
        return;
    };
    let shards = learner.gradient_shards;
    let dividing = (1..=most).rev().find(|ranks| shards.is_multiple_of(*ranks));
    learner.ranks = dividing.unwrap_or(1);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(toml: &str) -> Result<Devices, String> {
        #[derive(Deserialize)]
        struct Setting {
            device: Devices,
        }
        let setting = toml::from_str::<Setting>(&format!("device = {toml}"));
        setting
            .map(|setting| setting.device)
            .map_err(|error| error.message().to_owned())
    }

    #[test]
    fn a_device_all_cards_or_a_list_of_cards() {
        for text in [
            "\"cpu\"",
            "\"cuda:3\"",
            "\"wgpu\"",
            "\"cuda:*\"",
            "[\"cuda:0\", \"cuda:2\"]",
        ] {
            assert_eq!(read(text).unwrap().to_string(), text);
        }
        assert_eq!(read("[\"cpu\"]"), read("\"cpu\""));
        assert_eq!(read("\"cuda\""), read("\"cuda:0\""));
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        for (text, part) in [
            ("\"gpu\"", "unknown device \"gpu\""),
            ("[]", "names no device"),
            ("[\"cuda:1\", \"cuda:1\"]", "cuda:1 is named twice"),
            ("[\"cuda\", \"cuda:0\"]", "cuda:0 is named twice"),
            ("[\"cuda:0\", \"cpu\"]", "cpu stands in a list"),
            ("[\"cuda:0\", \"cuda:*\"]", "unknown device \"cuda:*\""),
            ("3", "expected a device or a list of cards"),
        ] {
            let error = read(text).expect_err(text);
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    fn config(device: &str) -> RunConfig {
        let mut config = RunConfig::default();
        for devices in [
            &mut config.model.device,
            &mut config.reward.device,
            &mut config.learner.device,
        ] {
            *devices = device.parse().expect("devices");
        }
        config
    }

    fn counts(config: &RunConfig) -> [u32; 3] {
        let cluster = &config.cluster;
        [
            cluster.rollout_workers,
            cluster.reward_workers,
            config.learner.ranks,
        ]
    }

    #[test]
    fn a_role_has_a_worker_a_card_unless_somebody_says_how_many() {
        let mut run = config("cuda:*");
        settle(&mut run, |_| false, || Ok(6)).unwrap();
        // Six ranks can't share eight shards.
        assert_eq!(counts(&run), [6, 6, 4]);
        assert_eq!(run.model.device.names().len(), 6);

        let mut run = config("cuda:*");
        settle(&mut run, |key| key != "cluster.reward_workers", || Ok(8)).unwrap();
        assert_eq!(counts(&run), [1, 8, 1]);

        let mut run = config("cuda:0");
        let asked = || -> Result<usize, String> { panic!("nobody wants to know") };
        settle(&mut run, |_| false, asked).unwrap();
        assert_eq!(counts(&run), [1, 1, 1]);
    }

    #[test]
    fn all_cards_of_a_machine_without_any_is_an_error_with_its_key() {
        for (cards, reason) in [
            (Ok(0), "none on this machine"),
            (Err("no driver".to_owned()), "no driver"),
        ] {
            let error = settle(&mut config("cuda:*"), |_| false, || cards)
                .unwrap_err()
                .to_string();
            assert!(
                error.contains("model.device: \"cuda:*\"") && error.contains(reason),
                "{error}"
            );
        }
    }
}
