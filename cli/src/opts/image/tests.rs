use super::*;

fn name(text: &str) -> Result<ImageSpec, String> {
    ImageSpec::from_name(OsStr::new(text), None)
}

fn options(text: &str) -> Result<ImageSpec, String> {
    ImageSpec::from_options(OsStr::new(text))
}

#[test]
fn file_names_and_protocols() {
    assert_eq!(name("a.qcow2").unwrap().file.path, "a.qcow2");
    assert_eq!(name("file:a:b").unwrap().file.path, "a:b");
    assert_eq!(name("./a:b").unwrap().file.path, "./a:b");
    let device = name("host_device:/dev/x").unwrap().file;
    assert_eq!(device.protocol, Some(Protocol::HostDevice));
    assert_eq!(name("a:b/c").unwrap_err(), "Unknown protocol 'a'");
    assert_eq!(name(":").unwrap_err(), "Unknown protocol ''");
    assert_eq!(name("nbd://host/x").unwrap_err(), "Unknown protocol 'nbd'");
    assert_eq!(
        name("").unwrap_err(),
        "The 'file' block driver requires a file name"
    );
    let unknown = ImageSpec::from_name(OsStr::new("x:y"), Some("foo"));
    assert_eq!(unknown.unwrap_err(), "Unknown driver 'foo'");
}

#[test]
fn json_and_options_mean_the_same() {
    let json = name(r#"json:{"driver":"qcow2","file":{"driver":"file","filename":"a,b"}}"#);
    let mut json = json.unwrap();
    let opts = options("driver=qcow2,file.driver=file,file.filename=a,,b").unwrap();
    json.given.clone_from(&opts.given);
    assert_eq!(json, opts);
    assert_eq!(opts.driver, Some(Driver::Qcow2));
    let file = Reference {
        path: "a,b".into(),
        protocol: Some(Protocol::File),
    };
    assert_eq!(opts.file, file);
}

#[test]
fn what_json_may_not_say() {
    for (text, message) in [
        ("json:{}", "Must specify either driver or file"),
        ("json:[]", "Invalid JSON object given"),
        (
            "json:{",
            "Could not parse the JSON options: JSON parse error, premature EOI",
        ),
        (
            "json:",
            "Could not parse the JSON options: Expecting a JSON value",
        ),
        (
            "json:{} x",
            "Could not parse the JSON options: Expecting at most one JSON value",
        ),
        (
            r#"json:{"driver":"nbd","host":"x"}"#,
            "Unknown driver 'nbd'",
        ),
        (
            r#"json:{"driver":"qcow2"}"#,
            "A block device must be specified for \"file\"",
        ),
        (
            r#"json:{"driver":"file"}"#,
            "The 'file' block driver requires a file name",
        ),
        (
            r#"json:{"driver":"qcow2","file":"a"}"#,
            "Cannot find device='a' nor node-name='a'",
        ),
    ] {
        assert_eq!(name(text).unwrap_err(), message, "{text}");
    }
}

#[test]
fn options_are_checked_by_driver() {
    for (text, message) in [
        (
            "v3.qcow2",
            "Cannot find device='v3.qcow2' nor node-name='v3.qcow2'",
        ),
        ("", "Must specify either driver or file"),
        ("filename=x", "Must specify either driver or file"),
        (
            "foo=bar,driver=qcow2,file.filename=x",
            "Block format 'qcow2' does not support the option 'foo'",
        ),
        (
            "driver=qcow2,file.filename=x,file.foo=y",
            "Block protocol 'file' doesn't support the option 'foo'",
        ),
        (
            "driver=qcow2,file.filename=x,backing.driver=y",
            "Block format 'qcow2' does not support the option 'backing.driver'",
        ),
        (
            "driver=qcow2,file.filename=x,read-only=x",
            "Parameter 'read-only' expects 'on' or 'off'",
        ),
        (
            ",driver=raw",
            "Cannot reference an existing block device with additional options or a new filename",
        ),
    ] {
        assert_eq!(options(text).unwrap_err(), message, "{text}");
    }
    let spec = options("driver=qcow2,cache-size=1M,lazy-refcounts,encrypt.key-secret=s,backing=,file.filename=x,file.locking=off,data-file.filename=d").unwrap();
    assert_eq!(spec.key_secret.as_deref(), Some("s"));
    assert_eq!(spec.backing, Backing::Nothing);
    assert_eq!(spec.data_file.unwrap().path, "d");
    assert_eq!(spec.warnings.len(), 2);
}

#[test]
fn either_layer_may_be_read_only() {
    for (text, expected) in [
        ("driver=qcow2,file.filename=x", false),
        ("driver=qcow2,file.filename=x,read-only=off", false),
        ("driver=qcow2,file.filename=x,read-only=on", true),
        ("driver=qcow2,file.filename=x,file.read-only=on", true),
        ("driver=file,filename=x,read-only=on", true),
    ] {
        assert_eq!(options(text).unwrap().read_only, expected, "{text}");
    }
    let json = r#"json:{"driver":"qcow2","read-only":true,"file":{"filename":"x"}}"#;
    assert!(name(json).unwrap().read_only);
}
