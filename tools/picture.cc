#include "tools/picture.h"

#include <sys/stat.h>

#include <cerrno>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <memory>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/errors.h"
#include "nlohmann/json.hpp"
#include "tools/cairo.h"

namespace spindle {
namespace {

constexpr char kSvg[] = ".svg";
constexpr char kPng[] = ".png";
// How files of either kind begin.
constexpr char kSvgStart[] = "<?xml";
constexpr char kPngStart[] = "\x89PNG";

using Surface = std::unique_ptr<cairo_surface_t, void (*)(cairo_surface_t*)>;
using Context = std::unique_ptr<cairo_t, void (*)(cairo_t*)>;

cairo_status_t append(void* text, const unsigned char* bytes, unsigned length) {
  static_cast<std::string*>(text)->append(reinterpret_cast<const char*>(bytes),
                                          length);
  return CAIRO_STATUS_SUCCESS;
}

absl::Status to_status(const Cairo& cairo, cairo_status_t code) {
  if (code == CAIRO_STATUS_SUCCESS) return absl::OkStatus();
  return absl::InternalError(
      absl::StrCat("cairo: ", cairo.status_to_string(code)));
}

// What can be shown: names of files may be any bytes.
std::string to_utf8(const std::string& bytes) {
  using Json = nlohmann::json;
  std::string text =
      Json::parse(
          Json(bytes).dump(-1, ' ', false, Json::error_handler_t::replace))
          .get<std::string>();
  for (char& letter : text) {
    if (letter >= 0 && letter < ' ') letter = '?';
  }
  return text;
}

// REQUIRES: not empty.
std::string without_first_letter(const std::string& text) {
  size_t next = 1;
  while (next < text.size() &&
         (static_cast<uint8_t>(text[next]) & 0xc0) == 0x80) {
    ++next;
  }
  return text.substr(next);
}

}  // namespace

// Draws one shape after the other.
class Picture::Painter {
 public:
  Painter(const Cairo& cairo, cairo_surface_t* surface)
      : cairo_(cairo), context_(cairo.create(surface), cairo.destroy) {
    cairo_.set_source_rgb(context_.get(), 1, 1, 1);
    cairo_.paint(context_.get());
    cairo_.select_font_face(context_.get(), "sans-serif",
                            CAIRO_FONT_SLANT_NORMAL, CAIRO_FONT_WEIGHT_NORMAL);
    cairo_.set_font_size(context_.get(), kLetterHeight);
  }

  void operator()(const Rectangle& shape) {
    // Neighbours meet without a seam.
    cairo_.set_antialias(context_.get(), CAIRO_ANTIALIAS_NONE);
    take(shape.colour);
    cairo_.rectangle(context_.get(), shape.x, shape.y, shape.width,
                     shape.height);
    cairo_.fill(context_.get());
  }
  void operator()(const Line& shape) {
    cairo_.set_antialias(context_.get(), CAIRO_ANTIALIAS_DEFAULT);
    take(shape.colour);
    cairo_.set_line_width(context_.get(), shape.width);
    // Along the middle of a row of pixels, or of a column.
    const double right = shape.x1 == shape.x2 ? 0.5 : 0;
    const double down = shape.y1 == shape.y2 ? 0.5 : 0;
    cairo_.move_to(context_.get(), shape.x1 + right, shape.y1 + down);
    cairo_.line_to(context_.get(), shape.x2 + right, shape.y2 + down);
    cairo_.stroke(context_.get());
  }
  void operator()(const Text& shape) {
    cairo_.set_antialias(context_.get(), CAIRO_ANTIALIAS_DEFAULT);
    take({});
    std::string text = to_utf8(shape.text);
    double width = width_of(text);
    if (shape.style.max_width > 0 && width > shape.style.max_width) {
      std::string rest = text;
      while (width > shape.style.max_width && !rest.empty()) {
        rest = without_first_letter(rest);
        text = absl::StrCat("\u2026", rest);
        width = width_of(text);
      }
    }
    double x = shape.x;
    if (shape.style.anchor == Anchor::kMiddle) x -= std::round(width / 2);
    if (shape.style.anchor == Anchor::kEnd) x -= width;
    cairo_.move_to(context_.get(), x, shape.y);
    cairo_.show_text(context_.get(), text.c_str());
  }

  absl::Status status() const {
    return to_status(cairo_, cairo_.status(context_.get()));
  }

 private:
  void take(Colour colour) {
    constexpr double kMost = 255;
    cairo_.set_source_rgb(context_.get(), colour.red / kMost,
                          colour.green / kMost, colour.blue / kMost);
  }
  double width_of(const std::string& text) {
    cairo_text_extents_t extents;
    cairo_.text_extents(context_.get(), text.c_str(), &extents);
    return extents.x_advance;
  }

  const Cairo& cairo_;
  const Context context_;
};

void Picture::add_rectangle(double x, double y, double width, double height,
                            Colour colour) {
  shapes_.emplace_back(Rectangle{x, y, width, height, colour});
}

void Picture::add_line(double x1, double y1, double x2, double y2,
                       Colour colour, double width) {
  shapes_.emplace_back(Line{x1, y1, x2, y2, colour, width});
}

void Picture::add_text(double x, double y, std::string text,
                       const TextStyle& style) {
  shapes_.emplace_back(Text{x, y, std::move(text), style});
}

absl::StatusOr<std::string> Picture::to_svg() const {
  const absl::StatusOr<const Cairo*> cairo = Cairo::load();
  if (!cairo.ok()) return cairo.status();
  std::string bytes;
  const Surface surface(
      (*cairo)->svg_surface_create_for_stream(append, &bytes, width_, height_),
      (*cairo)->surface_destroy);
  (*cairo)->svg_surface_set_document_unit(surface.get(), CAIRO_SVG_UNIT_PX);
  absl::Status status;
  {
    Painter painter(**cairo, surface.get());
    for (const auto& shape : shapes_) std::visit(painter, shape);
    status = painter.status();
  }
  (*cairo)->surface_finish(surface.get());
  if (status.ok())
    status = to_status(**cairo, (*cairo)->surface_status(surface.get()));
  if (!status.ok()) return status;
  return bytes;
}

absl::StatusOr<std::string> Picture::to_png() const {
  const absl::StatusOr<const Cairo*> cairo = Cairo::load();
  if (!cairo.ok()) return cairo.status();
  const Surface surface(
      (*cairo)->image_surface_create(CAIRO_FORMAT_RGB24, width_, height_),
      (*cairo)->surface_destroy);
  Painter painter(**cairo, surface.get());
  for (const auto& shape : shapes_) std::visit(painter, shape);
  absl::Status status = painter.status();
  if (!status.ok()) return status;
  std::string bytes;
  status = to_status(**cairo, (*cairo)->surface_write_to_png_stream(
                                  surface.get(), append, &bytes));
  if (!status.ok()) return status;
  return bytes;
}

// ---- Files ------------------------------------------------------------------

absl::Status Picture::check_path(const std::string& path) {
  if (!absl::EndsWith(path, kSvg) && !absl::EndsWith(path, kPng)) {
    return absl::InvalidArgumentError(
        absl::StrCat("Cannot draw '", path, "': a picture's name ends with ",
                     kSvg, " or ", kPng));
  }
  struct stat attributes = {};
  // What cannot be looked at cannot be written either, which is said then.
  if (::stat(path.c_str(), &attributes) != 0) return absl::OkStatus();
  if (!S_ISREG(attributes.st_mode) || attributes.st_size == 0)
    return absl::OkStatus();
  std::ifstream file(path, std::ios::binary);
  std::string start(sizeof(kSvgStart) - 1, '\0');
  file.read(start.data(), static_cast<std::streamsize>(start.size()));
  if (!file.is_open() || absl::StartsWith(start, kSvgStart) ||
      absl::StartsWith(start, kPngStart)) {
    return absl::OkStatus();
  }
  return absl::AlreadyExistsError(absl::StrCat(
      "Cannot draw '", path, "': a file that is no picture has this name"));
}

absl::Status Picture::save(const std::string& path) const {
  absl::Status status = check_path(path);
  if (!status.ok()) return status;
  const absl::StatusOr<std::string> bytes =
      absl::EndsWith(path, kSvg) ? to_svg() : to_png();
  if (!bytes.ok()) {
    return with_context(bytes.status(),
                        absl::StrCat("Cannot draw '", path, "'"));
  }
  const auto close = [](std::FILE* file) { std::fclose(file); };
  std::unique_ptr<std::FILE, decltype(close)> file(
      std::fopen(path.c_str(), "wb"), close);
  if (file == nullptr ||
      std::fwrite(bytes->data(), 1, bytes->size(), file.get()) !=
          bytes->size() ||
      std::fclose(file.release()) != 0) {
    return errno_status(errno, absl::StrCat("Cannot write '", path, "'"));
  }
  return absl::OkStatus();
}

}  // namespace spindle
