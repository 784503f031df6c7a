//! Declarations of labels and configuration keys. Pure.
#![forbid(unsafe_code)]

use std::borrow::Cow;

/// A label, or a key of a service's table, as the reference describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Declaration {
    /// The label without its prefix, which is the key of the table too.
    pub key: &'static str,
    /// Its values, with their unit, in Markdown.
    pub values: &'static str,
    /// Its default, in Markdown.
    pub default: Cow<'static, str>,
    /// Its effect, in Markdown.
    pub doc: &'static str,
    /// A value for the commented configuration file, in TOML, if the default is none.
    pub sample: Option<&'static str>,
}

impl Declaration {
    /// One that is not made by [`service_options`](super::options).
    pub(super) const fn new(key: &'static str, values: &'static str, default: &'static str, doc: &'static str) -> Self {
        Self { key, values, default: Cow::Borrowed(default), doc, sample: None }
    }

    /// The same with a value for the commented configuration file.
    pub(super) const fn sample(mut self, toml: &'static str) -> Self {
        self.sample = Some(toml);
        self
    }

    /// A value in TOML: the sample, else the default.
    pub fn toml(&self) -> String {
        let default = self.default.trim_matches('`');
        match self.sample {
            Some(sample) => sample.to_owned(),
            None if default.parse::<u32>().is_ok() => default.to_owned(),
            None => format!("\"{default}\""),
        }
    }
}

/// Declares the options of a service, each once: its field in JSON, its type, its label and key, its values, default and documentation,
/// how a text is read, and how a value is written.
///
/// It generates `GivenOptions` (the options of one label set, table or request), `ServiceOptions` (the options in effect), `KEYS` and
/// `declarations`. The names of the fields are those of the API and of the files of backends.
macro_rules! service_options {
    ($($field:ident: $type:ty {
        key: $key:literal,
        values: $values:literal,
        default: $default:expr,
        doc: $doc:literal,
        read: $read:expr,
        write: $write:expr,
    })*) => {
        /// The options that one backend's labels, one table of the configuration or one request gives; `None` for an option that it does
        /// not name.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
        #[serde(default)]
        pub struct GivenOptions {
            $(
                #[doc = $doc]
                #[serde(skip_serializing_if = "Option::is_none")]
                pub $field: Option<$type>,
            )*
        }

        /// The options of a service that are in effect.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
        #[serde(default)]
        pub struct ServiceOptions {
            $(
                #[doc = $doc]
                pub $field: $type,
            )*
        }

        impl Default for ServiceOptions {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }

        /// The key of every option.
        pub const KEYS: &[&str] = &[$($key),*];

        /// Every option, for the reference.
        pub fn declarations() -> Vec<Declaration> {
            let write = ServiceOptions::default().written().into_iter();
            let described = [$(($values, $doc)),*];
            let declare = |((key, default), (values, doc))| {
                Declaration { key, values, default: format!("`{default}`").into(), doc, sample: None }
            };
            write.zip(described).map(declare).collect()
        }

        impl GivenOptions {
            /// Reads the options among these texts, which are known by their keys. `refuse` is called for each invalid value with its key,
            /// its text, and what is wrong with it.
            pub fn read(texts: &BTreeMap<&str, &str>, mut refuse: impl FnMut(&'static str, &str, String)) -> Self {
                let mut given = Self::default();
                $(
                    if let Some(text) = texts.get($key) {
                        let read: fn(&str) -> Result<$type, String> = $read;
                        given.$field = read(text).map_err(|wrong| refuse($key, text, wrong)).ok();
                    }
                )*
                given
            }

            /// The options that are given, as labels have them: key and text.
            pub fn written(&self) -> Vec<(&'static str, String)> {
                let mut written = Vec::new();
                $(
                    let write: fn(&$type) -> String = $write;
                    written.extend(self.$field.as_ref().map(|value| ($key, write(value))));
                )*
                written
            }

            /// These options, and those of `weaker` that they do not name.
            #[must_use]
            pub fn or(self, weaker: &Self) -> Self {
                Self { $($field: self.$field.or(weaker.$field),)* }
            }

            /// These options, and the default of every other one.
            pub fn or_defaults(self) -> ServiceOptions {
                let defaults = ServiceOptions::default();
                ServiceOptions { $($field: self.$field.unwrap_or(defaults.$field),)* }
            }
        }

        impl ServiceOptions {
            /// Every option as labels have it: key and text.
            pub fn written(&self) -> Vec<(&'static str, String)> {
                GivenOptions { $($field: Some(self.$field),)* }.written()
            }
        }
    };
}

pub(super) use service_options;
