#include "engine/image_name.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "engine/json_options.h"
#include "gtest/gtest.h"

namespace spindle {
namespace {

TEST(ImageName, APrefixEndsBeforeTheFirstColonUnlessASlashComesFirst) {
  EXPECT_EQ(protocol_prefix("nbd:localhost:1"), "nbd");
  EXPECT_EQ(protocol_prefix(":x"), "");
  EXPECT_EQ(protocol_prefix("json:{}"), "json");
  for (const char* plain : {"", "a", "a/b:c", "./a:b", "/a:b"})
    EXPECT_FALSE(protocol_prefix(plain).has_value()) << plain;
}

TEST(ImageName, AFileNameWithAColonIsWrittenSoThatItIsNoPrefix) {
  EXPECT_EQ(unmistakable_filename("a:b"), "./a:b");
  EXPECT_EQ(unmistakable_filename("d/a:b"), "d/a:b");
  EXPECT_EQ(unmistakable_filename("a"), "a");
}

TEST(ImageName, RelativeNamesStartAtTheImage) {
  EXPECT_EQ(resolve_backing_filename("d/a", "b"), "d/b");
  EXPECT_EQ(resolve_backing_filename("a", "b"), "b");
  EXPECT_EQ(resolve_backing_filename("d/a", "/b"), "/b");
  EXPECT_EQ(resolve_backing_filename(NameSyntax::kQemu, "d/a", "file:b"),
            "file:b");
  EXPECT_EQ(resolve_backing_filename(NameSyntax::kPlain, "d/a", "file:b"),
            "d/file:b");
}

TEST(ImageName, JsonBecomesOptionsWithDots) {
  const auto options =
      parse_json_name(R"(json:{"driver": "qcow2", "file": {"driver": "file",)"
                      R"( "filename": "a\u00e9\"b"}, "list": [1, {"x": true}],)"
                      R"( "backing": null, "empty": {}, "n": -1.5e3})");
  ASSERT_TRUE(options.ok()) << options.status();
  const OptionMap expected = {{"driver", "qcow2"},
                              {"file.driver", "file"},
                              {"file.filename", "a\xc3\xa9\"b"},
                              {"list.0", "1"},
                              {"list.1.x", "on"},
                              {"backing", std::string(kNullOption)},
                              {"n", "-1.5e3"}};
  EXPECT_EQ(*options, expected);
}

TEST(ImageName, JsonMayHaveSingleQuotes) {
  const auto options =
      parse_json_options("{'file.filename': 'a', \"b\": 'c\"d'}");
  ASSERT_TRUE(options.ok()) << options.status();
  EXPECT_EQ(*options, (OptionMap{{"file.filename", "a"}, {"b", "c\"d"}}));
}

TEST(ImageName, OfANestedMemberAndOneWithADotTheNestedOneCounts) {
  for (const char* text : {R"({"f": {"n": "1"}, "f.n": "2"})",
                           R"({"f.n": "2", "f": {"n": "1"}})"}) {
    EXPECT_EQ((*parse_json_options(text)).at("f.n"), "1") << text;
  }
}

TEST(ImageName, JsonThatIsNoneIsRefused) {
  const std::string deep(100, '[');
  const std::string deep_name(200, '{');
  for (const std::string& text : {std::string(),
                                  std::string(" "),
                                  std::string("{"),
                                  std::string("{\"a"),
                                  std::string("{\"a\":}"),
                                  std::string("{\"a\":1,}"),
                                  std::string("{\"a\":1}x"),
                                  std::string("[]"),
                                  std::string("1"),
                                  std::string("{\"a\":\"\\x\"}"),
                                  std::string("{\"a\":\"\\u12\"}"),
                                  std::string("{\"a\":\"\\ud800\"}"),
                                  std::string("{\"a\":\"\\u0000\"}"),
                                  std::string("{\"a\":1,\"a\":2}"),
                                  std::string("{1:2}"),
                                  std::string("{\"a\":\"\x01\"}"),
                                  std::string("{\"a\":\0}", 7),
                                  deep,
                                  deep_name,
                                  absl::StrCat("{\"a\":", deep, "}")}) {
    EXPECT_FALSE(parse_json_options(text).ok()) << text;
  }
}

TEST(ImageName, PairsOfSurrogatesAreOneCharacter) {
  const auto options = parse_json_options(R"({"a": "\ud83d\ude00"})");
  ASSERT_TRUE(options.ok()) << options.status();
  EXPECT_EQ(options->at("a"), "\xf0\x9f\x98\x80");
}

TEST(ImageName, OptionsAreDescribedInQemusOrder) {
  // As `qemu-img info --image-opts` printed it.
  EXPECT_EQ(describe_options_as_name({{"driver", "raw"},
                                      {"size", "1024"},
                                      {"offset", "512"},
                                      {"file.driver", "file"},
                                      {"file.filename", "r.raw"}}),
            "json:{\"offset\": \"512\", \"driver\": \"raw\", "
            "\"size\": \"1024\", "
            "\"file\": {\"driver\": \"file\", \"filename\": \"r.raw\"}}");
  EXPECT_EQ(describe_options_as_name({{"driver", "quorum"},
                                      {"vote-threshold", "1"},
                                      {"children.0.driver", "raw"},
                                      {"children.1.driver", "raw"}}),
            "json:{\"children\": [{\"driver\": \"raw\"}, "
            "{\"driver\": \"raw\"}], \"driver\": \"quorum\", "
            "\"vote-threshold\": \"1\"}");
  EXPECT_EQ(describe_options_as_name({{"x", std::string(kNullOption)}}),
            "json:{\"x\": null}");
}

TEST(ImageName, ChildOptionsAreTakenOutWithoutTheirPrefix) {
  OptionMap options = {{"file", "x"},
                       {"file.a", "1"},
                       {"file.b.c", "2"},
                       {"filea", "3"},
                       {"z", "4"}};
  EXPECT_EQ(take_child_options("file", &options),
            (OptionMap{{"a", "1"}, {"b.c", "2"}}));
  EXPECT_EQ(options, (OptionMap{{"file", "x"}, {"filea", "3"}, {"z", "4"}}));
}

}  // namespace
}  // namespace spindle
