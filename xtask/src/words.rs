//! The words on the kernel's boot line, all in one place.

use anyhow::{Result, bail};

/// What the kernel does when the user asks for nothing else: the stress.
pub const DEFAULT: &str = "bench=forkexec";

/// What the boot line is made of.
#[derive(Default)]
pub struct BootLine {
    /// `--append`.
    pub append: Option<String>,
    /// The program in the initramfs to run as pid 1, and its arguments.
    pub init: Option<(String, Vec<String>)>,
}

impl BootLine {
    /// The whole line. The machine's name and how its time is to be read a kernel cannot know by itself.
    pub fn line(&self, topology: &str, mode: &str) -> Result<String> {
        let mut words = vec![format!("topology={topology}"), format!("mode={mode}")];
        match (&self.append, &self.init) {
            (None, None) => words.push(DEFAULT.to_string()),
            (Some(append), _) => words.push(append.trim().to_string()),
            (None, Some(_)) => {}
        }
        if self
            .append
            .as_deref()
            .is_some_and(|a| a.split_whitespace().any(|w| w == bundle::words::SEPARATOR))
        {
            bail!(
                "--append cannot hold the word --, which begins the program's arguments: use --init"
            );
        }
        if let Some((path, args)) = &self.init {
            words.push(format!("init={path}"));
            words.push(bundle::words::SEPARATOR.to_string());
            words.extend(args.iter().map(|a| escape(a)));
        }
        Ok(words.join(" "))
    }
}

/// An argument in a form without spaces, which `bundle::words` undoes.
fn escape(arg: &str) -> String {
    bundle::words::escape(arg.as_bytes())
        .map(char::from)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(append: Option<&str>, init: Option<(&str, &[&str])>) -> Result<String> {
        let init =
            init.map(|(p, args)| (p.to_string(), args.iter().map(|a| a.to_string()).collect()));
        let append = append.map(str::to_string);
        BootLine { append, init }.line("laptop", "tcg")
    }

    #[test]
    fn lines() {
        assert_eq!(
            line(None, None).unwrap(),
            format!("topology=laptop mode=tcg {DEFAULT}")
        );
        assert_eq!(
            line(Some("bench=fork"), None).unwrap(),
            "topology=laptop mode=tcg bench=fork"
        );
        let got = line(Some("quiet"), Some(("/bin/sh", &["-c", "echo 100% a", ""]))).unwrap();
        assert_eq!(
            got,
            "topology=laptop mode=tcg quiet init=/bin/sh -- -c echo%20100%25%20a %"
        );
        assert!(line(Some("a -- b"), None).is_err());
    }
}
