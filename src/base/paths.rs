//! Paths of two file systems that must not be mixed up.

use std::fmt;

/// A path on the host that runs containers, which may be another than this one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HostPath(String);

/// A path in a job's containers.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ContainerPath(String);

macro_rules! path {
    ($name:ident) => {
        impl $name {
            /// Takes the path as it is written.
            pub fn new(path: impl Into<String>) -> Self {
                Self(path.into())
            }

            /// The path as it is written.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

path!(HostPath);
path!(ContainerPath);
