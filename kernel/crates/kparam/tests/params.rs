//! The grammar, the errors, and that what is written is read back.

use kparam::{Bytes, Params, Reason, Text, help, parse, split_init_args, write_line};
use proptest::prelude::*;

kparam::choices! {
    /// Colours.
    pub enum Colour {
        /// Like blood.
        Red = "red",
        /// Like grass,
        /// or hope.
        Green = "green",
    }
}

kparam::params! {
    /// A bit of everything.
    pub struct All {
        /// A colour.
        colour: Colour = Colour::Green,
        /// How many.
        how_many: u32 = 7,
        /// A small one.
        small: u8 = 0,
        /// Memory.
        /// Two lines.
        mem: Option<Bytes> = None,
        /// A flag.
        quiet: bool = false,
        /// Program.
        init: Text<16> = Text::new("/init"),
    }
}

fn line(p: &All) -> String {
    let mut s = String::new();
    write_line(p, &mut s).unwrap();
    s
}

fn ok(s: &str) -> String {
    line(&parse::<All>(s).unwrap())
}

fn err(s: &str) -> String {
    parse::<All>(s).unwrap_err().to_string()
}

#[test]
fn defaults_and_every_kind() {
    assert_eq!(
        ok(""),
        "colour=green how_many=7 small=0 mem=unset quiet=off init=/init"
    );
    assert_eq!(ok(" \t\n"), ok(""));
    let said = "colour=red how-many=0x1_0 small=255 mem=12M quiet init=\"/a b\"";
    assert_eq!(
        ok(said),
        "colour=red how_many=16 small=255 mem=12M quiet=on init=\"/a b\""
    );
    assert_eq!(
        ok("how_many=1 quiet=yes how-many=2 quiet=off"),
        ok("how_many=2"),
        "the last counts"
    );
    for (text, bytes) in [
        ("0", 0),
        ("1k", 1 << 10),
        ("3G", 3 << 30),
        ("16383T", 16383 << 40),
        ("0x10K", 1 << 14),
    ] {
        assert_eq!(
            parse::<All>(&format!("mem={text}")).unwrap().mem,
            Some(Bytes(bytes)),
            "{text}"
        );
    }
    assert_eq!(parse::<All>("init=").unwrap().init.as_str(), "");
    assert_eq!(
        Colour::ALL.iter().map(|c| c.name()).collect::<Vec<_>>(),
        ["red", "green"]
    );
}

#[test]
fn nothing_is_ignored() {
    let bad = [
        "colour",
        "colour=",
        "colour=blue",
        "colour=Red",
        "how_many",
        "how_many=",
        "how_many=-1",
        "how_many=+1",
        "how_many=4294967296",
        "how_many=99999999999999999999",
        "how_many=0x",
        "how_many=_1",
        "how_many=1K",
        "small=256",
        "mem=",
        "mem=K",
        "mem=1KK",
        "mem=16777216T",
        "mem=1.5G",
        "quiet=maybe",
        "quiet=",
        "init=/a/name/of/17/byt",
        "init=a\"b",
        "init",
        "=",
        "=5",
        "colour =red",
        "- quiet",
        "---",
    ];
    for s in bad {
        assert!(parse::<All>(s).is_err(), "`{s}` was taken");
        assert!(
            parse::<All>(&format!("quiet {s} small=1")).is_err(),
            "`{s}` was taken"
        );
    }
}

#[test]
fn errors_help() {
    let e = err("quiet coulor=red");
    assert!(
        e.starts_with("unknown boot parameter `coulor`; did you mean `colour`?\n"),
        "{e}"
    );
    assert!(
        e.contains("\n  colour=red|green\n  how_many=N\n") && e.contains("\n  quiet\n"),
        "{e}"
    );
    assert!(!err("xyzzy").contains("did you mean"));
    let e = err("colour=gren");
    assert!(
        e.contains("`gren` is not one of the choices; did you mean `green`?"),
        "{e}"
    );
    assert!(e.contains("\n  colour=red  Like blood."), "{e}");
    assert_eq!(
        err("small=300"),
        "boot parameter `small`: `300` is not a number from 0 to 255"
    );
    assert!(err("mem").contains("needs a value"));
    let e = parse::<All>("small=x").unwrap_err();
    assert!(matches!(e.reason, Reason::BadValue(row) if row.word == "small"));
}

#[test]
fn help_is_the_doc_comments() {
    let mut s = String::new();
    help::<All>(&mut s).unwrap();
    let expect = "colour=red|green  (default green)\n    A colour.\n    red    Like blood.\n    green  Like grass,\n           or hope.\n";
    assert!(s.starts_with(expect), "{s}");
    assert!(
        s.contains(
            "mem=SIZE[K|M|G|T]  (default unset)\n    Memory.\n    Two lines.\nquiet\n    A flag.\n"
        ),
        "{s}"
    );
    for row in All::TABLE {
        assert!(s.contains(row.word));
    }
}

#[test]
fn init_args_follow_two_dashes() {
    assert_eq!(split_init_args("quiet -- sh -c x "), ("quiet ", "sh -c x"));
    assert_eq!(split_init_args("quiet --x"), ("quiet --x", ""));
    assert_eq!(
        split_init_args("init=\"a -- b\" quiet"),
        ("init=\"a -- b\" quiet", "")
    );
    assert_eq!(ok("quiet -- nonsense"), ok("quiet"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn any_text_is_an_answer(s in "\\PC{0,60}") {
        if let Err(e) = parse::<All>(&s) {
            prop_assert!(!e.to_string().is_empty());
        }
    }

    #[test]
    fn what_is_written_is_read_back(
        c in 0..2usize, how_many: u32, small: u8, shift in 0..64u32, mem: u64, some: bool, quiet: bool,
        init in "[^\"\u{0}-\u{1f}\u{7f}]{0,5}",
    ) {
        let mut p = All::defaults();
        p.colour = Colour::ALL[c];
        (p.how_many, p.small, p.quiet) = (how_many, small, quiet);
        p.mem = some.then_some(Bytes(mem >> shift << shift));
        prop_assume!(init.len() <= 16 && init != "unset");
        p.set("init", Some(&init)).unwrap();
        let written = line(&p);
        prop_assert_eq!(ok(&written), written);
    }
}
