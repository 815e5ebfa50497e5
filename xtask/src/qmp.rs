//! QEMU's monitor: lines of JSON on a socket.

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

/// A connection that is ready for commands.
pub struct Qmp {
    stream: BufReader<UnixStream>,
}

impl Qmp {
    /// Connects and says hello.
    pub fn connect(path: &Path) -> Result<Self> {
        let stream = UnixStream::connect(path).context("no monitor")?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        let mut qmp = Self {
            stream: BufReader::new(stream),
        };
        qmp.line()?; // the greeting
        qmp.execute("qmp_capabilities")?;
        Ok(qmp)
    }

    /// Runs a command without arguments.
    pub fn execute(&mut self, command: &str) -> Result<()> {
        let text = json!({ "execute": command }).to_string() + "\n";
        self.stream.get_mut().write_all(text.as_bytes())?;
        loop {
            let answer = self.line()?;
            if answer.get("return").is_some() {
                return Ok(());
            }
            if let Some(error) = answer.get("error") {
                bail!("{command}: {error}");
            }
            // Anything else is an event.
        }
    }

    fn line(&mut self) -> Result<Value> {
        let mut text = String::new();
        if self.stream.read_line(&mut text)? == 0 {
            bail!("closed");
        }
        Ok(serde_json::from_str(&text)?)
    }
}
