#include "tools/cairo.h"

#include <dlfcn.h>

#include <type_traits>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace spindle {
namespace {

constexpr char kLibrary[] = "libcairo.so.2";

absl::Status last_error() {
  const char* const error = ::dlerror();
  return absl::UnavailableError(
      absl::StrCat("drawing needs the cairo library: ",
                   error == nullptr ? "it is incomplete" : error));
}

absl::StatusOr<const Cairo*> load_once() {
  // Never closed: it is used until the process ends.
  void* const library = ::dlopen(kLibrary, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return last_error();
  auto* const cairo = new Cairo;
  bool complete = true;
  const auto find = [&](const char* name, auto* function) {
    *function = reinterpret_cast<std::remove_pointer_t<decltype(function)>>(
        ::dlsym(library, name));
    complete = complete && *function != nullptr;
  };
  find("cairo_status_to_string", &cairo->status_to_string);
  find("cairo_image_surface_create", &cairo->image_surface_create);
  find("cairo_svg_surface_create_for_stream",
       &cairo->svg_surface_create_for_stream);
  find("cairo_svg_surface_set_document_unit",
       &cairo->svg_surface_set_document_unit);
  find("cairo_surface_write_to_png_stream",
       &cairo->surface_write_to_png_stream);
  find("cairo_surface_finish", &cairo->surface_finish);
  find("cairo_surface_status", &cairo->surface_status);
  find("cairo_surface_destroy", &cairo->surface_destroy);
  find("cairo_create", &cairo->create);
  find("cairo_status", &cairo->status);
  find("cairo_destroy", &cairo->destroy);
  find("cairo_set_antialias", &cairo->set_antialias);
  find("cairo_set_source_rgb", &cairo->set_source_rgb);
  find("cairo_set_line_width", &cairo->set_line_width);
  find("cairo_paint", &cairo->paint);
  find("cairo_rectangle", &cairo->rectangle);
  find("cairo_fill", &cairo->fill);
  find("cairo_move_to", &cairo->move_to);
  find("cairo_line_to", &cairo->line_to);
  find("cairo_stroke", &cairo->stroke);
  find("cairo_select_font_face", &cairo->select_font_face);
  find("cairo_set_font_size", &cairo->set_font_size);
  find("cairo_text_extents", &cairo->text_extents);
  find("cairo_show_text", &cairo->show_text);
  if (complete) return cairo;
  delete cairo;
  return last_error();
}

}  // namespace

absl::StatusOr<const Cairo*> Cairo::load() {
  static const auto* const loaded =
      new absl::StatusOr<const Cairo*>(load_once());
  return *loaded;
}

}  // namespace spindle
