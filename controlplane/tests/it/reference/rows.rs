//! Reads `rows.txt`.

use serde_json::Value;

/// One operation of the reference.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) method: String,
    pub(super) path: String,
    /// What a good call may answer.
    pub(super) statuses: Vec<u16>,
    pub(super) example: Option<String>,
    /// How many of what there must be before.
    pub(super) fill: Option<(usize, String)>,
    pub(super) parameters: Vec<Parameter>,
    pub(super) answers: Vec<(String, Option<Value>)>,
    pub(super) content: Option<String>,
}

#[derive(Debug)]
pub(super) struct Parameter {
    /// `query` or `body`.
    pub(super) place: String,
    /// With dots where it lies deeper.
    pub(super) name: String,
    pub(super) kind: Kind,
    /// The type as it is spelled in the file.
    pub(super) kind_text: String,
    pub(super) required: bool,
    pub(super) default: Option<Value>,
    /// Where the default shows in the answer.
    pub(super) at: Option<String>,
}

#[derive(Debug)]
pub(super) enum Kind {
    Integer(i64, Option<i64>),
    Text(usize, Option<usize>),
    Word(Vec<String>),
    Words(Vec<String>),
    Prefix,
    Uuid,
    Url,
    Boolean,
    Object,
    List,
    Id,
}

impl Row {
    pub(super) fn read_all() -> Vec<Self> {
        let mut rows: Vec<Self> = Vec::new();
        for line in include_str!("rows.txt").lines() {
            let words: Vec<_> = line.split_whitespace().collect();
            match words.first() {
                None | Some(&"#") => {}
                Some(_) if !line.starts_with(' ') => rows.push(Self::begin(&words)),
                Some(_) => rows.last_mut().unwrap().add(line.trim(), &words),
            }
        }
        assert!(rows.len() >= 34, "only {} operations", rows.len());
        rows
    }

    fn begin(words: &[&str]) -> Self {
        let statuses = words.get(2).unwrap_or(&"200").split('|').map(|s| s.parse().unwrap()).collect();
        Self {
            method: words[0].to_owned(),
            path: words[1].to_owned(),
            statuses,
            example: None,
            fill: None,
            parameters: Vec::new(),
            answers: Vec::new(),
            content: None,
        }
    }

    fn add(&mut self, line: &str, words: &[&str]) {
        let rest = |n: usize| line.splitn(n + 1, ' ').nth(n).map(|text| serde_json::from_str(text).unwrap());
        match words[0] {
            "example" => self.example = Some(line["example ".len()..].to_owned()),
            "fill" => self.fill = Some((words[1].parse().unwrap(), words[2].to_owned())),
            "content" => self.content = Some(words[1].to_owned()),
            "answer" => self.answers.push((words[1].to_owned(), rest(2))),
            "query" | "body" => self.parameters.push(Parameter::read(words)),
            other => panic!("{other} is no kind of line"),
        }
    }
}

impl Parameter {
    fn read(words: &[&str]) -> Self {
        let mut more = words[3..].iter().peekable();
        let list = |word: Option<&&&str>| word.unwrap().split('|').map(str::to_owned).collect();
        let mut kind_text = words[2].to_owned();
        let bounds = |text: &str| -> (i64, Option<i64>) {
            let (min, max) = text.split_once("..").unwrap();
            (min.parse().unwrap_or(0), max.parse().ok())
        };
        let mut next = || {
            let word = more.peek().copied();
            more.next();
            kind_text = format!("{kind_text} {}", word.unwrap());
            word
        };
        let kind = match words[2] {
            "integer" => {
                let (min, max) = bounds(next().unwrap());
                Kind::Integer(min, max)
            }
            "text" => {
                let (min, max) = bounds(next().unwrap());
                Kind::Text(usize::try_from(min).unwrap(), max.map(|m| usize::try_from(m).unwrap()))
            }
            "word" => Kind::Word(list(next().as_ref())),
            "words" => Kind::Words(list(next().as_ref())),
            "prefix" => Kind::Prefix,
            "uuid" => Kind::Uuid,
            "url" => Kind::Url,
            "boolean" => Kind::Boolean,
            "object" => Kind::Object,
            "list" => Kind::List,
            "id" => Kind::Id,
            other => panic!("{other} is no type"),
        };
        let mut parameter = Self {
            place: words[0].to_owned(),
            name: words[1].to_owned(),
            kind,
            kind_text,
            required: false,
            default: None,
            at: None,
        };
        while let Some(word) = more.next() {
            match *word {
                "required" => parameter.required = true,
                "default" => parameter.default = Some(serde_json::from_str(more.next().unwrap()).unwrap()),
                "at" => parameter.at = Some((*more.next().unwrap()).to_owned()),
                other => panic!("{other} is nothing that a parameter can be"),
            }
        }
        parameter
    }

    /// Values that it takes and values that it refuses, each with its name in the table.
    pub(super) fn values(&self) -> (Vec<Value>, Vec<Value>) {
        use serde_json::json;
        let text = |length: usize| json!("x".repeat(length));
        let junk = |kept: &str| {
            let all = [("text", json!("x")), ("number", json!(7.5)), ("boolean", json!(true)), ("list", json!([[]]))];
            let all = all.into_iter().chain([("object", json!({ "no such key": null }))]);
            all.filter(|(kind, _)| *kind != kept).map(|(_, value)| value).collect::<Vec<_>>()
        };
        match &self.kind {
            Kind::Integer(min, max) => {
                let good = [Some(*min), *max].into_iter().flatten().map(|n| json!(n)).collect();
                let beyond = [Some(min - 1), max.map(|m| m + 1)].into_iter().flatten().map(|n| json!(n));
                let kinds =
                    if self.place == "query" { vec![json!("x"), json!("1.5"), json!("")] } else { junk("none") };
                (good, beyond.chain(kinds).chain([json!("99999999999999999999")]).collect())
            }
            Kind::Text(min, max) => {
                let good = [*min, max.unwrap_or(min + 1)].map(text).to_vec();
                let short = min.checked_sub(1).map(text);
                let beyond = short.into_iter().chain(max.map(|m| text(m + 1)));
                (good, beyond.chain(junk("text")).collect())
            }
            Kind::Word(words) => {
                let good = words.iter().map(|w| json!(w)).collect();
                let near = [json!("no-such-word"), json!(""), json!(words[0].to_uppercase())];
                (good, near.into_iter().chain(junk("text")).collect())
            }
            Kind::Words(words) => {
                let good = words.iter().map(|w| json!([w])).chain([json!(words)]).collect();
                (good, [json!(["no-such-word"]), json!([1])].into_iter().chain(junk("none")).collect())
            }
            Kind::Prefix => {
                let good = ["203.0.113.200", "203.0.113.128/25", "2001:db8::1", "2001:db8::/48"].map(|p| json!(p));
                let bad = ["", "host.example", "203.0.113.256", "203.0.113.0/33", "1.2.3.4' OR 1=1"].map(|p| json!(p));
                (good.to_vec(), bad.into_iter().chain(junk("none")).collect())
            }
            Kind::Uuid => {
                let kinds = if self.place == "query" { vec![json!("")] } else { junk("none") };
                (vec![], [json!("no-uuid"), json!("0")].into_iter().chain(kinds).collect())
            }
            Kind::Url => {
                let bad = ["", "ftp://198.51.100.1/", "http://user:pass@198.51.100.1/", "http://"].map(|p| json!(p));
                (vec![json!("https://edge.example/x")], bad.into_iter().chain(junk("none")).collect())
            }
            Kind::Boolean => (vec![json!(true), json!(false)], junk("boolean")),
            Kind::Object => (vec![], junk("object")),
            Kind::List => (vec![], junk("list")),
            Kind::Id => (vec![], [json!(-1), json!(1_i64 << 62)].into_iter().chain(junk("none")).collect()),
        }
    }
}
