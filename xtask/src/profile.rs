//! Profiles: what things cost on the machine that a simulation imitates. `profiles/*.toml`.

use crate::{paths, topology::Topology};
use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use std::{collections::BTreeMap, fmt::Write, fs, path::PathBuf};

/// A cost and where it is from.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Cost {
    /// Cycles, more than 0.
    pub cycles: i64,
    /// A publication, or how it was chosen.
    pub source: String,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
struct Costs {
    locked: Cost,
    pause: Cost,
    l3: Cost,
    dram: Cost,
    stream: Cost,
    upgrade: Cost,
    occupancy: Cost,
    invalidate: Cost,
    ipi: Cost,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
struct Simulation {
    store_buffer: i64,
    cache_lines: i64,
    slack: i64,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
struct File {
    #[allow(dead_code, reason = "for people")]
    description: String,
    transfer: BTreeMap<String, Cost>,
    cost: Costs,
    simulation: Simulation,
}

/// A profile that makes sense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// Its name: the file's, without `.toml`.
    pub name: String,
    file: File,
    /// Cycles by distance.
    transfer: BTreeMap<u8, i64>,
}

impl Profile {
    /// The profile `name`: a file of `profiles/`, or the path of another.
    ///
    /// # Errors
    /// There is none of that name; what is wrong with it.
    pub fn load(name: &str) -> Result<Self> {
        let path = match name.ends_with(".toml") {
            true => PathBuf::from(name),
            false => directory().join(format!("{name}.toml")),
        };
        if !path.is_file() {
            bail!(
                "there is no profile {name:?}: {}",
                match name.ends_with(".toml") {
                    true => "no such file".into(),
                    false => format!("profiles/ has {}", Self::names().join(", ")),
                }
            );
        }
        let text = fs::read_to_string(&path).with_context(|| format!("profile {name}"))?;
        let stem = path
            .file_stem()
            .map_or_else(String::new, |s| s.to_string_lossy().into_owned());
        Self::parse(&stem, &text).with_context(|| format!("profile {name}"))
    }

    /// All names.
    pub fn names() -> Vec<String> {
        let files = fs::read_dir(directory()).into_iter().flatten().flatten();
        let mut names: Vec<String> = files
            .filter_map(|f| {
                Some(
                    f.file_name()
                        .to_string_lossy()
                        .strip_suffix(".toml")?
                        .to_string(),
                )
            })
            .collect();
        names.sort();
        names
    }

    fn parse(name: &str, text: &str) -> Result<Self> {
        let file: File = toml::from_str(text)?;
        let mut transfer = BTreeMap::new();
        for (distance, cost) in &file.transfer {
            let number: u8 = distance
                .parse()
                .ok()
                .filter(|d| (10..=254).contains(d))
                .with_context(|| {
                    format!("transfer: {distance:?} is no distance: 10, or 11 to 254")
                })?;
            transfer.insert(number, cost.cycles);
        }
        let profile = Self {
            name: name.into(),
            transfer,
            file,
        };
        ensure!(
            profile.transfer.contains_key(&10),
            "transfer: distance 10, within a node, is missing"
        );
        ensure!(
            profile.transfer.values().is_sorted(),
            "transfer: a longer distance costs less than a shorter one"
        );
        let transfers = profile
            .file
            .transfer
            .iter()
            .map(|(d, c)| (format!("transfer.{d}"), c));
        let costs = profile
            .costs()
            .into_iter()
            .map(|(n, c)| (format!("cost.{n}"), c));
        for (key, cost) in transfers.chain(costs) {
            ensure!(
                cost.cycles > 0,
                "{key}: {} cycles; a cost is more than 0",
                cost.cycles
            );
            ensure!(cost.cycles < 1 << 30, "{key}: {} cycles", cost.cycles);
            ensure!(!cost.source.trim().is_empty(), "{key}: no source");
        }
        let s = &profile.file.simulation;
        ensure!(
            (1..=1024).contains(&s.store_buffer),
            "simulation.store_buffer: {}; 1 to 1024",
            s.store_buffer
        );
        let lines = s.cache_lines;
        ensure!(
            (64..=1 << 20).contains(&lines) && lines & (lines - 1) == 0,
            "simulation.cache_lines: {lines}; a power of two from 64 to 1048576"
        );
        let least = profile.transfer[&10];
        ensure!(
            (0..=least).contains(&s.slack),
            "simulation.slack: {}; at most the least cost between two CPUs, {least}",
            s.slack
        );
        Ok(profile)
    }

    fn costs(&self) -> [(&'static str, &Cost); 9] {
        let c = &self.file.cost;
        [
            ("locked", &c.locked),
            ("pause", &c.pause),
            ("l3", &c.l3),
            ("dram", &c.dram),
            ("stream", &c.stream),
            ("upgrade", &c.upgrade),
            ("occupancy", &c.occupancy),
            ("invalidate", &c.invalidate),
            ("ipi", &c.ipi),
        ]
    }

    /// The names of all costs, for whoever varies them: `transfer` stands for all transfers.
    pub fn cost_names(&self) -> Vec<&'static str> {
        let names = self.costs().map(|(name, _)| name);
        [&["transfer"], &names[..]].concat()
    }

    /// This profile with one cost multiplied by `numerator / denominator`.
    ///
    /// # Errors
    /// There is no such cost.
    pub fn scaled(&self, name: &str, numerator: i64, denominator: i64) -> Result<Self> {
        let mut new = self.clone();
        let scale = |cycles: &mut i64| *cycles = (*cycles * numerator / denominator).max(1);
        let c = &mut new.file.cost;
        match name {
            "transfer" => new.transfer.values_mut().for_each(scale),
            "locked" => scale(&mut c.locked.cycles),
            "pause" => scale(&mut c.pause.cycles),
            "l3" => scale(&mut c.l3.cycles),
            "dram" => scale(&mut c.dram.cycles),
            "stream" => scale(&mut c.stream.cycles),
            "upgrade" => scale(&mut c.upgrade.cycles),
            "occupancy" => scale(&mut c.occupancy.cycles),
            "invalidate" => scale(&mut c.invalidate.cycles),
            "ipi" => scale(&mut c.ipi.cycles),
            _ => bail!(
                "there is no cost {name:?}: {}",
                self.cost_names().join(", ")
            ),
        }
        new.file.simulation.slack = new.file.simulation.slack.min(new.transfer[&10]);
        new.name = format!("{}+{name}*{numerator}/{denominator}", self.name);
        Ok(new)
    }

    /// Cycles for a line over `distance`.
    fn transfer(&self, distance: u8) -> Option<i64> {
        let (below, low) = self.transfer.range(..=distance).next_back()?;
        let (above, high) = self.transfer.range(distance..).next()?;
        let span = i64::from(above - below).max(1);
        Some(low + (high - low) * i64::from(distance - below) / span)
    }

    /// What the plugin is told about `topology` under this profile.
    ///
    /// # Errors
    /// The profile does not cover a distance of the topology.
    pub fn configuration(&self, topology: &Topology) -> Result<String> {
        let mut text = String::new();
        // Writing to a String does not fail.
        for (name, cost) in self.costs() {
            let _ = writeln!(text, "{name} {}", cost.cycles);
        }
        let s = &self.file.simulation;
        let _ = writeln!(
            text,
            "store_buffer {}\ncache_lines {}\nslack {}",
            s.store_buffer, s.cache_lines, s.slack
        );
        let nodes = topology.nodes.iter().enumerate();
        let nodes = nodes.flat_map(|(node, cpus)| (0..*cpus).map(move |_| node as u64));
        let row = |numbers: &mut dyn Iterator<Item = u64>| {
            numbers.map(|n| n.to_string()).collect::<Vec<_>>().join(" ")
        };
        let _ = writeln!(text, "nodes {}", row(&mut nodes.into_iter()));
        let _ = writeln!(
            text,
            "apic {}",
            row(&mut topology.apic_ids().into_iter().map(u64::from))
        );
        for (from, distances) in topology.distances.iter().enumerate() {
            let _ = write!(text, "transfer");
            for (to, distance) in distances.iter().enumerate() {
                let cycles = self.transfer(*distance).with_context(|| {
                    let known = (self.transfer.keys().min(), self.transfer.keys().max());
                    format!(
                        "profile {}: distance {from} to {to} of topology {} is {distance}; the profile covers {} to {}",
                        self.name,
                        topology.name,
                        known.0.unwrap_or(&0),
                        known.1.unwrap_or(&0)
                    )
                })?;
                let _ = write!(text, " {cycles}");
            }
            text.push('\n');
        }
        for (node, start, end) in topology.memory_ranges() {
            let _ = writeln!(text, "memory {start} {end} {node}");
        }
        Ok(text)
    }
}

fn directory() -> PathBuf {
    paths::root().join("profiles")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::Name;
    use clap::ValueEnum;

    const DEFAULT: &str = include_str!("../../profiles/default.toml");

    fn says(text: &str, word: &str) {
        let error = format!("{:#}", Profile::parse("x", text).unwrap_err());
        assert!(error.contains(word), "{error}");
    }

    #[test]
    fn every_profile_is_sound() {
        assert!(Profile::names().len() >= 2 && Profile::names().contains(&"default".into()));
        for name in Profile::names() {
            let profile = Profile::load(&name).unwrap();
            let hygon = profile.configuration(&Topology::named(Name::Hygon));
            assert!(hygon.is_ok(), "{hygon:?}");
        }
        let default = Profile::load("default").unwrap();
        for name in Name::value_variants() {
            let text = default.configuration(&Topology::named(*name)).unwrap();
            assert!(text.contains("transfer 110") && text.contains("memory 0 "));
        }
    }

    #[test]
    fn nonsense_is_refused_with_a_reason() {
        assert!(Profile::parse("default", DEFAULT).is_ok());
        says(
            &DEFAULT.replace("cycles = 18", "cycles = -18"),
            "cost.locked: -18",
        );
        says(
            &DEFAULT.replace("cycles = 1200", "cycles = 0"),
            "cost.ipi: 0",
        );
        says(&DEFAULT.replace("pause = {", "paws = {"), "paws");
        let line = DEFAULT.lines().find(|l| l.starts_with("dram")).unwrap();
        says(&DEFAULT.replace(line, ""), "dram");
        says(&DEFAULT.replace("10 = {", "9 = {"), "no distance");
        says(&DEFAULT.replace("10 = {", "11 = {"), "distance 10");
        says(
            &DEFAULT.replace("cycles = 590", "cycles = 59"),
            "costs less",
        );
        says(&DEFAULT.replace("slack = 100", "slack = 111"), "slack: 111");
        says(
            &DEFAULT.replace("cache_lines = 16384", "cache_lines = 1000"),
            "power of two",
        );
        says(
            &DEFAULT.replace("source = \"80 ns", "sauce = \"80 ns"),
            "sauce",
        );
        let error = Profile::load("nowhere").unwrap_err().to_string();
        assert!(error.contains("default"), "{error}");
    }

    #[test]
    fn topologies_beyond_its_distances_are_refused() {
        let profile = Profile::parse("default", DEFAULT).unwrap();
        let mut topology = Topology::named(Name::Default);
        topology.distances[0][3] = 41;
        let error = profile.configuration(&topology).unwrap_err().to_string();
        assert!(
            error.contains("distance 0 to 3") && error.contains("10 to 40"),
            "{error}"
        );
        assert_eq!(
            (profile.transfer(10), profile.transfer(32)),
            (Some(110), Some(462))
        );
    }

    #[test]
    fn costs_scale() {
        let profile = Profile::parse("default", DEFAULT).unwrap();
        for name in profile.cost_names() {
            assert_ne!(profile.scaled(name, 2, 1).unwrap(), profile);
        }
        let half = profile.scaled("transfer", 1, 2).unwrap();
        assert_eq!(
            (half.transfer(10), half.file.simulation.slack),
            (Some(55), 55)
        );
        assert!(profile.scaled("colour", 2, 1).is_err());
    }
}
