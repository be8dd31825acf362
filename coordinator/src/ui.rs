//! The web page: plain HTML, style and modules, held by the binary so that it is there without a network.
//!
//! Nothing in it is made by a build step: what `src/ui` holds is what browsers get.

/// What a browser may do on behalf of the page: load and call its own coordinator, and nothing else.
/// Pictures may also be in the page's data, as previews are; nothing inline is run or styled by.
pub const CONTENT_SECURITY_POLICY: &str = "default-src 'self'; img-src 'self' data:; style-src 'self'; script-src 'self'; \
     connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'";

/// A file of the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asset {
    /// What it holds.
    pub bytes: &'static [u8],
    /// What it is, as `Content-Type` says it.
    pub media_type: &'static str,
}

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

macro_rules! assets {
    ($($name:literal: $media_type:expr),+ $(,)?) => {
        /// Every file by its name under `/ui/`.
        const ASSETS: &[(&str, Asset)] = &[$((
            $name,
            Asset { bytes: include_bytes!(concat!("ui/", $name)), media_type: $media_type },
        )),+];
    };
}

assets! {
    "index.html": HTML,
    "style.css": CSS,
    "icon.svg": SVG,
    "api.js": SCRIPT,
    "app.js": SCRIPT,
    "cluster.js": SCRIPT,
    "dom.js": SCRIPT,
    "facts.js": SCRIPT,
    "form.js": SCRIPT,
    "format.js": SCRIPT,
    "gallery.js": SCRIPT,
    "given.js": SCRIPT,
    "hues.js": SCRIPT,
    "key.js": SCRIPT,
    "lanes.js": SCRIPT,
    "live.js": SCRIPT,
    "poll.js": SCRIPT,
    "queue.js": SCRIPT,
    "record.js": SCRIPT,
    "store.js": SCRIPT,
    "theme.js": SCRIPT,
    "timeline.js": SCRIPT,
}

/// The file that is asked for by `path`: `/` is the page itself, all else is under `/ui/`.
#[must_use]
pub fn asset(path: &str) -> Option<Asset> {
    let name = if path == "/" { "index.html" } else { path.strip_prefix("/ui/")? };
    ASSETS.iter().find(|(known, _)| *known == name).map(|(_, asset)| *asset)
}

impl Asset {
    /// What tells this content from that of another release, for the header `ETag`. Files keep their names from release to
    /// release: browsers are to ask for them each time, and are told if nothing changed.
    #[must_use]
    pub fn tag(&self) -> String {
        blake3::hash(self.bytes).to_hex()[..32].to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    fn text(name: &str) -> &'static str {
        std::str::from_utf8(asset(&format!("/ui/{name}")).unwrap().bytes).unwrap()
    }

    /// What stands between `before` and the next `"`, each time.
    fn quoted<'a>(text: &'a str, before: &str) -> Vec<&'a str> {
        text.split(before).skip(1).filter_map(|rest| rest.split('"').next()).collect()
    }

    #[test]
    fn every_file_of_the_folder_is_served_as_what_it_is() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ui");
        let there: BTreeSet<String> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        let served: BTreeSet<String> = ASSETS.iter().map(|(name, _)| (*name).to_owned()).collect();
        assert_eq!(there, served);
        for (name, asset) in ASSETS {
            let wanted = match name.rsplit('.').next().unwrap() {
                "html" => HTML,
                "css" => CSS,
                "js" => SCRIPT,
                _ => SVG,
            };
            assert_eq!(asset.media_type, wanted, "{name}");
        }
    }

    #[test]
    fn the_page_is_at_the_root_and_nothing_is_elsewhere() {
        assert_eq!(asset("/"), asset("/ui/index.html"));
        for path in ["", "/ui", "/ui/", "/index.html", "/ui/../ui.rs", "/ui/ui/app.js"] {
            assert_eq!(asset(path), None, "{path}");
        }
    }

    #[test]
    fn all_that_a_file_names_is_served() {
        for reference in quoted(text("index.html"), "src=\"").into_iter().chain(
            quoted(text("index.html"), "href=\"")
                .into_iter()
                .filter(|href| href.starts_with("/ui/")),
        ) {
            assert!(asset(reference).is_some(), "the page names {reference}");
        }
        for (name, _) in ASSETS.iter().filter(|(_, asset)| asset.media_type == SCRIPT) {
            for module in quoted(text(name), "from \"./") {
                assert!(asset(&format!("/ui/{module}")).is_some(), "{name} imports {module}");
            }
        }
    }

    #[test]
    fn nothing_is_inline_or_comes_from_elsewhere() {
        let page = text("index.html");
        for word in [" style=\"", "<style", " onclick=", "javascript:"] {
            assert!(!page.contains(word), "the page has {word}, which the policy forbids");
        }
        let scripts = page.matches("<script").count();
        assert_eq!(
            scripts,
            quoted(page, "<script").iter().filter(|tag| tag.contains("src=")).count()
                + quoted(page, "<script type=\"").len()
        );
        for (name, _) in ASSETS {
            let foreign =
                ["http://", "https://"].iter().flat_map(|scheme| text(name).split(*scheme).skip(1));
            for address in foreign {
                assert!(
                    address.starts_with("www.w3.org/"),
                    "{name} names another server: {}",
                    &address[..20]
                );
            }
        }
    }

    #[test]
    fn tags_of_other_contents_differ() {
        let tags: BTreeSet<String> = ASSETS.iter().map(|(_, asset)| asset.tag()).collect();
        assert_eq!(tags.len(), ASSETS.len());
    }
}
