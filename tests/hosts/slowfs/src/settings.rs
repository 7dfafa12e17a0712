//! How slow the filesystem is, what its clients may cache, and where it is mounted. No behaviour.

use std::path::PathBuf;
use std::time::Duration;

/// What can also be changed while it runs. Without any, it is as fast as FUSE and caches nothing.
#[derive(Clone, Copy, Default)]
pub struct Settings {
    /// Time of the metadata server for one operation; one after another.
    pub service: Duration,
    /// Time on the way, for every operation; side by side.
    pub latency: Duration,
    /// Time of the data server for one read or write, besides that of its bytes; one after another.
    pub read: Duration,
    /// What the data server moves in a second; 0: any amount.
    pub bytes_per_s: u64,
    /// How long a client trusts a name or an attribute.
    pub ttl: Duration,
    /// Whether a client keeps a file's contents after it was closed.
    pub keep_cache: bool,
}

impl Settings {
    /// Changes one setting, by the name that the command line and the socket have for it.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        let number = || match value.parse::<f64>() {
            Ok(number) if number.is_finite() && number >= 0.0 => Ok(number),
            _ => Err(format!("{name} must be a number from 0, not `{value}`")),
        };
        match name {
            "service-us" => self.service = Duration::from_secs_f64(number()? / 1e6),
            "latency-us" => self.latency = Duration::from_secs_f64(number()? / 1e6),
            "read-us" => self.read = Duration::from_secs_f64(number()? / 1e6),
            "mb-per-s" => self.bytes_per_s = (number()? * 1e6) as u64,
            "ttl-s" => self.ttl = Duration::from_secs_f64(number()?),
            "keep-cache" => self.keep_cache = number()? != 0.0,
            _ => return Err(format!("there is no setting `{name}`")),
        }
        Ok(())
    }
}

/// The command line.
#[derive(Default)]
pub struct Arguments {
    /// The folder whose contents are shown.
    pub backing: PathBuf,
    /// The socket to listen at.
    pub control: PathBuf,
    /// Each host's name and mount point.
    pub mounts: Vec<(String, PathBuf)>,
    /// What can also be changed later.
    pub settings: Settings,
}

impl Arguments {
    /// Reads `--backing DIR --control SOCKET --mount HOST=DIR... [--SETTING VALUE]...`.
    pub fn parse(mut words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut arguments = Self::default();
        while let Some(word) = words.next() {
            let name = word
                .strip_prefix("--")
                .ok_or_else(|| format!("`{word}` is no option"))?;
            let value = words.next().ok_or_else(|| format!("--{name} needs a value"))?;
            match name {
                "backing" => arguments.backing = value.into(),
                "control" => arguments.control = value.into(),
                "mount" => {
                    let (host, path) = value.split_once('=').ok_or("--mount needs HOST=DIR")?;
                    arguments.mounts.push((host.into(), path.into()));
                }
                _ => arguments.settings.set(name, &value)?,
            }
        }
        Ok(arguments)
    }
}
